"""The processes on this host and on others: supervisors, roles, keys and Dask."""
