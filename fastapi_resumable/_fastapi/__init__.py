"""Layer 5: FastAPI. The facade, its router, and the faces: decorator, dependency, route class, middleware."""
