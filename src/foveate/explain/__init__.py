"""What attention does in a network: recorded, diagnosed, and drawn."""

from foveate.explain.diagnosis import Check as Check
from foveate.explain.diagnosis import Diagnosis as Diagnosis
from foveate.explain.diagnosis import SiteDiagnosis as SiteDiagnosis
from foveate.explain.diagnosis import Thresholds as Thresholds
from foveate.explain.diagnosis import diagnose as diagnose
from foveate.explain.evidence import CAMS as CAMS
from foveate.explain.evidence import class_evidence as class_evidence
from foveate.explain.faithful import Faithfulness as Faithfulness
from foveate.explain.faithful import faithfulness as faithfulness
from foveate.explain.faithful import mean_of_layers as mean_of_layers
from foveate.explain.faithful import spatial_gates as spatial_gates
from foveate.explain.layers import list_maps as list_maps
from foveate.explain.recording import Layer as Layer
from foveate.explain.recording import Record as Record
from foveate.explain.recording import record as record
from foveate.explain.sheets import Input as Input
from foveate.explain.sheets import content as content
from foveate.explain.sheets import sheet as sheet
from foveate.explain.surveys import DATA_FIGURES as DATA_FIGURES
from foveate.explain.surveys import Evolution as Evolution
from foveate.explain.surveys import Survey as Survey
from foveate.explain.surveys import evolution as evolution
from foveate.explain.surveys import gradient_norms as gradient_norms
from foveate.explain.surveys import over_data as over_data
from foveate.explain.surveys import survey as survey
