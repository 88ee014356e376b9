"""The paper's studies, each built on the measuring loop."""
