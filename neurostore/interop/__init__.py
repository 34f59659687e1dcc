"""To and from the neighbours: Neo, pynapple, NWB, SONATA, NIR and Brian2.

One module for each, which imports its library when it is called; what comes out is a record (or a
tree of records) that ``.neuro.store`` takes.  Units, ids and values are kept as they are; what a
neighbour cannot hold is refused, not rounded.  Nothing here opens a store.

>>> import neurostore
>>> from neurostore.interop import sonata
>>> train = neurostore.spike_train([0.5, 2.5], [7, 3], timestamp=0.0, units="ms")
>>> sonata.write_spikes(train, tmp / "spikes.h5", population="cortex")
>>> sonata.read_spikes(tmp / "spikes.h5").neuron_ids.values
array([7, 3], dtype=uint64)
"""
