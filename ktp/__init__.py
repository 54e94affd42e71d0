"""ktp tells why a Kubernetes NodePort or load-balancer port does not answer."""

__version__ = "0.1.0"
