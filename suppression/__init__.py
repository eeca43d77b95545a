"""Addresses not to be mailed: kept in SQL, projected to Redis, asked by router and workers."""
