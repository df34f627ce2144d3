"""Scripts behind every figure that the project publishes; README.md is their index."""
