"""Attention into hosts that nobody prepared, and out again without a trace."""

from foveate.insertion.insert import Handle as Handle
from foveate.insertion.insert import insert as insert
from foveate.insertion.insert import remove as remove
from foveate.insertion.places import PLACES as PLACES
from foveate.insertion.plan import Plan as Plan
from foveate.insertion.plan import Refusal as Refusal
from foveate.insertion.plan import Site as Site
from foveate.insertion.plan import make_plan as make_plan
from foveate.insertion.plan import plan as plan
