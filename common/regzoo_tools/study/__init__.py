"""Studies: many trainings and evaluations, run on this machine or on a cluster, and resumed where they stopped."""
