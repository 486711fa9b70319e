"""Stores: one HDF5 file per dataset."""
