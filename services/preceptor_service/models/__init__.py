"""Model architectures that runs may name. Called by the gateway (checks) and the scorers (losses)."""

from preceptor_service.models.registry import Architecture, ArchitectureRegistry

__all__ = ["Architecture", "ArchitectureRegistry"]
