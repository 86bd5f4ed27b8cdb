;; Says that it reads only snapshots newer than those it writes, so none could ever be read.
⟨describe⟩ (i32.store (i32.const 2068) (i32.const 9))
