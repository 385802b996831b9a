//! Several Tritons: each request goes to one of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use super::ready_model::ReadyModel;
use super::server::Server;
use diffusion_core::config::OUTPUT_NAME;

/// Why there is no server for a request.
#[derive(Debug)]
pub enum NoModel {
    /// All servers answer, and the model is ready on none.
    NotReady,
    /// No server with this model answers.
    Unreachable,
}

/// The servers, with the one that is asked first.
pub struct Servers {
    servers: Vec<Server>,
    next: AtomicUsize,
}

impl Servers {
    /// Makes the clients of the servers at `addresses`, each `host:port`.
    ///
    /// # Errors
    /// An address is not `host:port`; the error has the address.
    pub fn new(addresses: &[String]) -> Result<Self, String> {
        let server = |address: &String| Server::new(address).map_err(|_| address.clone());
        Ok(Self {
            servers: addresses.iter().map(server).collect::<Result<_, _>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// Returns the servers, beginning with another one in each call.
    fn in_turn(&self) -> impl Iterator<Item = &Server> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.servers.len();
        (0..count).filter_map(move |index| self.servers.get(first.wrapping_add(index) % count))
    }

    /// Finds the next server on which a model is ready. One that does not answer is passed over.
    ///
    /// # Errors
    /// [`NoModel`].
    pub async fn find(&self, model: &str) -> Result<ReadyModel, NoModel> {
        let mut unreachable = false;
        for server in self.in_turn() {
            match tokio::try_join!(server.is_model_ready(model), server.is_decoupled(model)) {
                Ok((true, is_decoupled)) => {
                    return Ok(ReadyModel {
                        server: server.clone(),
                        name: model.to_owned(),
                        is_decoupled,
                    });
                }
                // An error other than these is an answer: the server does not have this model.
                Err(status) if is_unreachable(&status) => unreachable = true,
                Ok((false, _)) | Err(_) => {}
            }
        }
        Err(if unreachable {
            NoModel::Unreachable
        } else {
            NoModel::NotReady
        })
    }

    /// Asks whether a server is ready.
    pub async fn is_any_ready(&self) -> bool {
        for server in self.in_turn() {
            if server.is_ready().await.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// Returns the sorted names of the models that are ready on a server and generate images; `None` if no server
    /// answers.
    pub async fn image_models(&self) -> Option<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut answered = false;
        for server in &self.servers {
            let Ok(models) = server.ready_models().await else {
                continue;
            };
            answered = true;
            for model in BTreeSet::from_iter(models) {
                let outputs = server.outputs(&model).await.unwrap_or_default();
                if outputs.iter().any(|output| output == OUTPUT_NAME) {
                    found.insert(model);
                }
            }
        }
        answered.then_some(found)
    }
}

fn is_unreachable(status: &Status) -> bool {
    use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable, Unknown};
    matches!(status.code(), Unavailable | Unknown | Cancelled | DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn servers_are_asked_in_turn() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(String::from);
        let servers = Servers::new(&addresses).unwrap();
        let order = || {
            servers
                .in_turn()
                .map(|server| servers.servers.iter().position(|other| std::ptr::eq(server, other)))
                .map(Option::unwrap)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            [order(), order(), order(), order()],
            [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
        );
        assert_eq!(Servers::new(&["a b".into()]).err(), Some("a b".to_owned()));
    }

    #[tokio::test]
    async fn servers_that_do_not_answer_are_unreachable() {
        // Port 1 of loopback refuses connections.
        let servers = Servers::new(&["127.0.0.1:1".into()]).unwrap();
        assert!(matches!(servers.find("sd").await, Err(NoModel::Unreachable)));
        assert!(!servers.is_any_ready().await);
        assert_eq!(servers.image_models().await, None);
    }
}
