//! The kinds of resources that the host lends to a guest.

/// `io/error.error`: no stream here ever fails with one.
pub(crate) struct IoError;
/// `io/streams.input-stream`: standard input, closed.
pub(crate) struct InputStream;
/// `io/streams.output-stream`: standard output or error, by its number.
pub(crate) struct OutputStream;
/// `io/poll.pollable`: an instant of virtual time.
pub(crate) struct Pollable;
/// `snapshot-io.sink`: the one that `save` was lent.
pub(crate) struct LentSink;
/// `snapshot-io.source`: the one that `restore` was lent.
pub(crate) struct LentSource;
