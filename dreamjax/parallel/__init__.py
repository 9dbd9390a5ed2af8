"""Devices and processes: the mesh, how parameters and batches are sharded over it, and programs of several processes.

`sharding.py` builds the mesh and says where arrays go, `batches.py` cuts a run's examples into batches that divide over
it, `processes.py` is about programs that run as several processes, and about preemption.
"""
