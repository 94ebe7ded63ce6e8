//! What the standard health service says: of the node as a whole (the empty name) and of each
//! service that it serves to clients. They serve from when the node is in a ring until it is on its
//! way out, so that who watches takes his requests elsewhere in time.

use crate::core::layout::Standing;
use crate::location::Location;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// See the module's documentation.
pub(super) struct Health {
    reporter: HealthReporter,
    services: Vec<&'static str>,
    said: Option<ServingStatus>,
}

impl Health {
    /// Of a node that is in no ring yet and serves these services.
    pub(super) async fn new(reporter: HealthReporter, mut services: Vec<&'static str>) -> Self {
        services.push("");
        let mut health = Health { reporter, services, said: None };
        health.say(ServingStatus::NotServing).await;
        health
    }

    /// Says it of all services, and no news twice.
    pub(super) async fn say(&mut self, status: ServingStatus) {
        if self.said.replace(status) == Some(status) {
            return;
        }
        for service in &self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Says when the node is in a ring; ends when the ring lets it go.
    pub(super) async fn follow(&mut self, location: &Location) {
        let (me, mut layouts) = (location.me(), location.watch());
        if layouts.wait_for(Option::is_some).await.is_err() {
            return;
        }
        self.say(ServingStatus::Serving).await;
        let _nobody_knows_any_more = layouts
            .wait_for(|layout| {
                let member = layout.as_ref().and_then(|layout| layout.member(me));
                member.is_none_or(|member| member.standing == Standing::Leaving)
            })
            .await;
    }
}
