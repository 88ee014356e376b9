"""Training under Accelerate: one step-based loop, one objective a stage."""
