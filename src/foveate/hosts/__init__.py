"""Networks by name: small ones of our own, torchvision, timm, and weights for them."""

from foveate.hosts.by_name import build_host as build_host
from foveate.hosts.by_name import is_host as is_host
from foveate.hosts.by_name import list_hosts as list_hosts
