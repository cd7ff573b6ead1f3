"""What attention does in a network: recorded, and diagnosed."""

from foveate.explain.diagnosis import Check as Check
from foveate.explain.diagnosis import Diagnosis as Diagnosis
from foveate.explain.diagnosis import SiteDiagnosis as SiteDiagnosis
from foveate.explain.diagnosis import Thresholds as Thresholds
from foveate.explain.diagnosis import diagnose as diagnose
from foveate.explain.recording import Layer as Layer
from foveate.explain.recording import Record as Record
from foveate.explain.recording import record as record
