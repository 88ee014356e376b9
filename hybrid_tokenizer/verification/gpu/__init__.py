"""The GPU check: everything that a CPU cannot prove about the CUDA path, section by section, each in its own process."""
