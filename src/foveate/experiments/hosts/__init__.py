"""Networks by name: small ones of our own, torchvision, timm, and weights for them."""
