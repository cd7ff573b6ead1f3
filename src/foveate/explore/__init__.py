"""A page on this machine that shows what a network attends to, image by image."""

from foveate.explore.looking import Explorer as Explorer
from foveate.explore.pictures import Album as Album
from foveate.explore.serving import leaving_nothing as leaving_nothing
from foveate.explore.serving import serve as serve
