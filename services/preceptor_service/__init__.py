"""The Preceptor service: gateway, pipeline, scorers and weight store."""
