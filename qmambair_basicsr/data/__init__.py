"""Data: MATLAB-exact resizing, degradations that are the same on every machine, and the datasets that use them.

Modules named ``*_dataset.py`` register datasets in BasicSR's ``DATASET_REGISTRY``; the others are plain modules:
``image_files`` (reading and writing with errors that name the file), ``matlab_resize``, ``jpeg_codec``, ``noise``,
``benchmarks`` (facts about the published test sets), ``image_sources`` (folders and LMDBs; ``lmdb_images``,
``name_lists``), and what ``tools.prepare_data`` is made of (``batch``, ``ledger``, ``prepare_jobs``, ``prepare_sidd``,
``make_lmdb``).
"""
