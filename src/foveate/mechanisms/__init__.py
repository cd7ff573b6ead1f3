"""One paper, one file. Importing a file registers its mechanism."""

from foveate.mechanisms.squeeze_excitation import SqueezeExcitation as SqueezeExcitation
