;; Writes an empty snapshot, and takes one for a counter of 0: whatever it has counted is gone at each barrier, everywhere.
⟨save⟩
(call $drop-sink (local.get $sink))
(return (call $done))
⟨restore⟩
(call $drop-source (local.get $source))
(return (call $done))
