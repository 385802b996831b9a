//! An engine, which the instances of models with one base share.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use triton_api::{Health, log_error};

use super::base_components::BaseComponents;
use super::device_health::DeviceHealth;
use super::metrics::Counters;
use crate::pipelines::{Device, DiffusionPipeline};
use diffusion_core::Result;
use diffusion_engine::{Engine, MemoryBudget, Observer};

/// An instance whose requests an engine computes.
pub struct Member {
    /// The instance's name.
    pub instance: String,
    /// The health of the instance, which fails with the engine.
    pub health: Weak<Health>,
    /// The counters of its model.
    pub counters: Arc<Counters>,
}

#[derive(Default)]
struct Members(Mutex<Vec<Member>>);

impl Members {
    /// Calls `call` for each instance that still exists.
    fn for_each(&self, call: impl Fn(&Member, &Health)) {
        let members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members.iter() {
            if let Some(health) = member.health.upgrade() {
                call(member, &health);
            }
        }
    }
}

/// An engine with the instances whose requests it computes.
pub struct SharedEngine {
    /// Computes the requests.
    pub engine: Engine<DiffusionPipeline>,
    health: Arc<Health>,
    members: Arc<Members>,
    // Frees the weights, which the engine uses.
    _components: Arc<BaseComponents>,
}

impl SharedEngine {
    /// Starts an engine that computes with loaded components.
    ///
    /// # Errors
    /// `Internal` if the system refuses the thread.
    pub fn start(
        base: &Arc<BaseComponents>,
        max_unet_batch_size: usize,
        max_pixels: u64,
        budget: &Arc<MemoryBudget>,
        devices: &Arc<DeviceHealth>,
    ) -> Result<Arc<Self>> {
        let components = base.get()?;
        let device = base.device();
        let (health, members) = (Arc::<Health>::default(), Arc::<Members>::default());
        devices.add(device, &health);
        let observer = EngineObserver {
            members: Arc::clone(&members),
            health: Arc::clone(&health),
            device,
            devices: Arc::clone(devices),
        };
        let engine = Engine::start(
            "diffusion-engine",
            move || DiffusionPipeline::new(components.clone(), max_pixels),
            max_unet_batch_size,
            budget,
            Box::new(observer),
        )?;
        Ok(Arc::new(Self {
            engine,
            health,
            members,
            _components: Arc::clone(base),
        }))
    }

    /// Adds an instance, which fails with the engine.
    pub fn add(&self, member: Member) {
        let mut members = self.members.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.health.strong_count() > 0);
        members.push(member);
        drop(members);
        // It may have failed before it knew the instance.
        if let Some(reason) = self.health.poisoned() {
            self.members.for_each(|_, health| health.poison(reason));
        }
    }

    /// Returns whether the engine works.
    pub fn is_ready(&self) -> bool {
        self.health.is_ready()
    }

    /// Checks that the engine works.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self) -> Result<(), triton_api::Error> {
        self.health.check()
    }
}

/// Reports to Triton what an engine does.
struct EngineObserver {
    members: Arc<Members>,
    health: Arc<Health>,
    device: Device,
    /// The health of all instances on each device.
    devices: Arc<DeviceHealth>,
}

impl Observer for EngineObserver {
    fn engine_restarts(&self) {
        self.members.for_each(|member, _| {
            log_error!(
                "instance '{}' starts anew after a panic; its running requests were ended",
                member.instance
            );
            member.counters.engine_restarted();
        });
    }

    fn engine_failed(&self, reason: &str) {
        self.health.poison(reason);
        self.members.for_each(|member, health| {
            log_error!("instance '{}' can no longer work: {reason}", member.instance);
            health.poison(reason);
        });
        if self.device.is_lost() {
            self.devices.poison(self.device, reason);
        }
    }
}
