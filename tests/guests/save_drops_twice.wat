;; Gives back the sink that it was lent, twice.
⟨saved⟩ (call $drop-sink (local.get $sink))
