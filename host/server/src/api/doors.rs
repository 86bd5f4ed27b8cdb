//! The ports for clients: their places, and the memory that what is not whole yet may take. Can change while a node runs.

use std::sync::{Arc, PoisonError, RwLock};

use crate::api::door::Door;
use crate::api::pot::Pot;
use crate::config::{Config, HttpSection};

/// Bytes of bodies of HTTP requests that are read, or whose requests are not answered yet, from 64 KiB each on, and of components
/// that are sent.
const BODIES_BYTES: usize = 256 << 20;

/// Bytes of components that are sent, of a node: two as large as may be.
const COMPONENTS_BYTES: usize = 128 << 20;
/// Bytes of frames of clients that have not come whole.
const CLIENT_FRAMES_BYTES: usize = 256 << 20;

/// See the module.
pub struct Doors {
    /// For HTTP.
    pub http: Arc<Door>,
    /// For the client protocol.
    pub clients: Arc<Door>,
    pub(crate) bodies: Arc<Pot>,
    /// Components on their way to whoever asked for them: a slow reader of these keeps out no upload.
    pub(crate) components: Arc<Pot>,
    pub(crate) client_frames: Arc<Pot>,
    settings: RwLock<Arc<HttpSection>>,
}

impl Doors {
    pub(crate) fn new(config: &Config) -> Self {
        let (http, limits) = (&config.http, &config.limits);
        Self {
            http: Door::new(http.connections, http.per_address),
            clients: Door::new(limits.client_connections, limits.client_per_address),
            bodies: Pot::new(BODIES_BYTES),
            components: Pot::new(COMPONENTS_BYTES),
            client_frames: Pot::new(CLIENT_FRAMES_BYTES),
            settings: RwLock::new(Arc::new(http.clone())),
        }
    }

    /// What counts for HTTP now.
    pub fn settings(&self) -> Arc<HttpSection> {
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&settings)
    }

    /// From now on this counts.
    pub(crate) fn set(&self, config: &Config) {
        let (http, limits) = (&config.http, &config.limits);
        self.http.set(http.connections, http.per_address);
        self.clients
            .set(limits.client_connections, limits.client_per_address);
        *self
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(http.clone());
    }
}
