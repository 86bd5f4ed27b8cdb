//! Clients ask, wait, ask again, and hear.

use bytes::Bytes;
use skep_core::id::{GroupId, LogIndex};
use skep_core::input::{Input, Waiter};
use skep_core::proposal::{ProposalError, Response};
use skep_log::GroupKey;

use super::event::Event;
use super::{PATIENCE, World};
use crate::client::{Kind, Settled};
use crate::invariant::{Place, Violation};
use crate::node::Node;
use crate::scenario::SECOND;

/// Who waits for an answer.
pub(super) enum Who {
    Client(usize),
    Operator(u64),
}

impl World {
    /// A request on its way to a node; if that ends before, nobody answers.
    pub(super) fn request(&mut self, node: u64, group: GroupId, input: Input) {
        let boot = self.nodes[&node].boots;
        let delay = self.delay();
        let request = Event::Request {
            node,
            boot,
            group,
            input,
        };
        self.after(delay, request);
    }

    pub(super) fn waiter(&mut self, who: Who) -> Waiter {
        self.next_waiter += 1;
        self.waiters.insert(self.next_waiter, who);
        self.next_waiter
    }

    pub(super) fn a_host(&mut self, key: GroupKey) -> Option<u64> {
        let record = self.catalogue.groups.get(&key.group)?;
        let up: Vec<u64> = record
            .hosts
            .iter()
            .copied()
            .filter(|node| self.nodes.get(node).is_some_and(Node::is_up))
            .collect();
        self.random.pick(&up).copied()
    }

    pub(super) fn client(&mut self, index: usize) -> Result<(), Violation> {
        let key = self.clients[index].key;
        let current = self.catalogue.key(key.group);
        let client = &mut self.clients[index];
        if let Some(current) = current.filter(|current| *current != key) {
            client.begin_anew(current);
        }
        let key = client.key;
        match &client.operation {
            None if self.healing => return Ok(()),
            None => {
                let floor = self.checker.begins(key);
                client.begin(floor, &mut self.random);
            }
            Some(operation) => {
                if let Some(waiter) = operation.waiting {
                    self.waiters.remove(&waiter);
                    client.timed_out();
                    if client.operation.is_none() {
                        self.wake_client(index, 1);
                        return Ok(());
                    }
                }
            }
        }
        let Some(node) = self.a_host(key) else {
            self.wake_client(index, SECOND);
            return Ok(());
        };
        let waiter = self.waiter(Who::Client(index));
        let client = &mut self.clients[index];
        self.trace.line(self.now, || {
            format!(
                "client {} asks node {node} as waiter {waiter}: {}",
                client.id,
                client.describe()
            )
        });
        let proposal = client.proposal(self.scenario.ballast);
        let operation = client.operation.as_mut().expect("begun above");
        operation.waiting = Some(waiter);
        let input = match proposal {
            Some(proposal) => Input::Propose { waiter, proposal },
            None => Input::Query {
                waiter,
                request: Bytes::new(),
                linearizable: operation.kind == Kind::Read,
            },
        };
        self.wake_client(index, PATIENCE);
        self.request(node, GroupId(key.group), input);
        Ok(())
    }

    pub(super) fn replied(
        &mut self,
        place: Place,
        waiter: Waiter,
        result: &Result<Response, ProposalError>,
    ) -> Result<(), Violation> {
        match self.waiters.remove(&waiter) {
            Some(Who::Client(index)) => {
                let client = &mut self.clients[index];
                // An answer to what it asked before the group was created anew says nothing of what it asks now.
                let Some(operation) = client
                    .operation
                    .as_ref()
                    .filter(|operation| operation.waiting == Some(waiter))
                else {
                    return Ok(());
                };
                let floor = operation.floor;
                self.trace.line(self.now, || {
                    format!(
                        "client {} hears from node {} of {} as waiter {waiter}: {result:?}",
                        client.id, place.node, place.key
                    )
                });
                if client.key != place.key {
                    return Ok(());
                }
                let settled = client.answered(result);
                if let (Settled::Applied(command), Ok(response)) = (settled, result) {
                    self.checker.acknowledged(
                        place,
                        command,
                        floor,
                        response.index.0,
                        &response.outcome,
                    )?;
                }
                if let (Settled::GivenUp(command), Ok(response)) = (settled, result) {
                    self.checker
                        .given_up(place, command, floor, response.index.0)?;
                }
                let pause = match settled {
                    Settled::Retry => self.random.around(SECOND / 4),
                    _ => self.random.around(self.scenario.think),
                };
                self.wake_client(index, pause);
                Ok(())
            }
            Some(Who::Operator(group)) => {
                self.operated(group, result);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn read(
        &mut self,
        place: Place,
        waiter: Waiter,
        result: Result<(LogIndex, u64), ProposalError>,
    ) -> Result<(), Violation> {
        let Some(Who::Client(index)) = self.waiters.remove(&waiter) else {
            return Ok(());
        };
        let client = &mut self.clients[index];
        if client.key != place.key {
            return Ok(());
        }
        let Some(operation) = client
            .operation
            .as_mut()
            .filter(|operation| operation.waiting == Some(waiter))
        else {
            return Ok(());
        };
        operation.waiting = None;
        let pause = match result {
            Ok((index, state)) => {
                let linearizable = operation.kind == Kind::Read;
                let floor = operation.floor;
                client.operation = None;
                self.checker
                    .read(place, floor, index.0, state, linearizable)?;
                self.random.around(self.scenario.think)
            }
            Err(_) => self.random.around(SECOND / 4),
        };
        self.wake_client(index, pause);
        Ok(())
    }

    /// The client looks up again after so long, or earlier if it is told to before.
    pub(super) fn wake_client(&mut self, index: usize, delay: u64) {
        let client = &mut self.clients[index];
        client.turn += 1;
        let turn = client.turn;
        self.after(
            delay,
            Event::Client {
                client: index,
                turn,
            },
        );
    }
}
