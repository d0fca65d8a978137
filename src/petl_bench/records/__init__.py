"""Records of runs and study files: their schema, their validation, the run key, and where they lie."""
