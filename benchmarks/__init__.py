"""Scripts behind every figure that the project quotes; README.md is their index."""
