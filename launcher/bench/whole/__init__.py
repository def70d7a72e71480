"""The benchmark of a whole run: its costs, and the rates of other machines."""
