"""Attention into hosts that nobody prepared, and out again without a trace."""

from foveate.insertion.handle import Handle as Handle
from foveate.insertion.handle import insert as insert
from foveate.insertion.handle import remove as remove
from foveate.insertion.places import PLACES as PLACES
from foveate.insertion.planning import Plan as Plan
from foveate.insertion.planning import Refusal as Refusal
from foveate.insertion.planning import Site as Site
from foveate.insertion.planning import make_plan as make_plan
from foveate.insertion.planning import plan as plan
