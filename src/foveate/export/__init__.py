"""Networks as files for other runtimes, run there and held against the original."""

from foveate.export.agreement import Agreement as Agreement
from foveate.export.agreement import DropError as DropError
from foveate.export.agreement import MismatchError as MismatchError
from foveate.export.agreement import Runner as Runner
from foveate.export.int8 import Int8 as Int8
from foveate.export.int8 import int8 as int8
from foveate.export.runtimes import RUNTIMES as RUNTIMES
from foveate.export.runtimes import measure as measure
from foveate.export.to_onnx import onnx as onnx
from foveate.export.to_onnx import read_about as read_about
from foveate.export.to_onnx import takes_any_size as takes_any_size
from foveate.export.to_openvino import openvino as openvino
from foveate.export.to_openvino import openvino_int8 as openvino_int8
from foveate.export.to_tensorrt import tensorrt as tensorrt
from foveate.export.to_torch import program as program
from foveate.export.to_torch import program_int8 as program_int8
