//! The components of a cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_core::id::ComponentId;

use super::command::{Refusal, Reply};
use super::{COMPONENTS_MAX, Catalog, ComponentRecord};

impl Catalog {
    /// The components that no group uses or ever did and that were uploaded before this, by the wall clock in nanoseconds.
    pub fn unused(&self, before: u64) -> Vec<Arc<ComponentRecord>> {
        let mut used = BTreeSet::new();
        for group in self.groups.values() {
            used.insert(group.component);
            used.extend(&group.used);
            used.extend(group.founding.as_ref().map(|founding| founding.component));
        }
        let components = self.components.values();
        let unused = components.filter(|of| of.uploaded < before && !used.contains(&of.id));
        unused.cloned().collect()
    }

    pub(super) fn put_component(&mut self, component: ComponentRecord) -> Result<Reply, Refusal> {
        if !self.components.contains_key(&component.id) && self.components.len() >= COMPONENTS_MAX {
            return Err(Refusal::Full(format!(
                "the catalogue knows {COMPONENTS_MAX} components, the most it may"
            )));
        }
        // Content-addressed, so a second one of the same id says nothing new but when.
        match self.components.get_mut(&component.id) {
            Some(known) if known.uploaded >= component.uploaded => {}
            Some(known) => Arc::make_mut(known).uploaded = component.uploaded,
            None => drop(self.components.insert(component.id, Arc::new(component))),
        }
        Ok(Reply::Done)
    }

    pub(super) fn collect(&mut self, before: u64) -> Reply {
        let unused = self.unused(before);
        for component in &unused {
            self.components.remove(&component.id);
        }
        Reply::Collected(unused.iter().map(|of| (**of).clone()).collect())
    }

    pub(super) fn check_component(&self, component: ComponentId) -> Result<(), Refusal> {
        if self.components.contains_key(&component) {
            return Ok(());
        }
        Err(Refusal::NotFound(format!(
            "component {component} is not known; upload it first"
        )))
    }
}
