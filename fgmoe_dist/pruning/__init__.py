"""Makes a trained model smaller: without experts that are little used, without other tasks, without unused channels."""
