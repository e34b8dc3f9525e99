//! Every scenario, one after the other, at one of three sizes.

use clap::{Args, ValueEnum};

use super::{
    Scenario,
    backlog::Backlog,
    creation::Creation,
    delivery::Delivery,
    federated::{Federated, RemoteJoin},
    idle::Idle,
    keys::Keys,
    media::Media,
    reads::Reads,
    sends::{Sends, Spread},
    syncs::Syncs,
};

#[derive(Debug, Args)]
pub struct All {
    /// How much of everything
    #[arg(long, value_enum, default_value_t = Size::Small)]
    pub size: Size,
    /// Search for the highest rate of deliveries too
    #[arg(long)]
    pub step: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Seconds: shows that everything works
    Tiny,
    /// Minutes, on slow servers too
    Small,
    /// What fast servers are measured with
    Full,
}

impl Size {
    fn of<T>(self, tiny: T, small: T, full: T) -> T {
        match self {
            Self::Tiny => tiny,
            Self::Small => small,
            Self::Full => full,
        }
    }
}

impl All {
    /// The scenarios; those of two servers only if there are two.
    pub fn scenarios(&self, two: bool) -> Vec<Scenario> {
        let size = self.size;
        let seconds = size.of(0.3, 8.0, 15.0);
        let connections = 4;
        let mut all = vec![
            Scenario::Sends(Sends {
                senders: size.of(4, 16, 32),
                spread: Spread::Both,
                members: size.of(3, 10, 10),
                seconds,
                most: 1_000_000,
            }),
            self.delivery(5.0, false),
        ];
        if self.step {
            all.push(self.delivery(size.of(10.0, 20.0, 200.0), true));
        }
        all.extend([
            Scenario::Keys(Keys {
                people: size.of(4, 50, 100),
                uploads: size.of(1, 4, 4),
                connections,
                seconds,
            }),
            Scenario::Reads(Reads {
                members: size.of(3, 10, 10),
                messages: size.of(20, 200, 500),
                connections,
                seconds,
            }),
            Scenario::Creation(Creation { rooms: size.of(3, 20, 200), connections: 1 }),
            Scenario::Media(Media { size: size.of(10_000, 200_000, 200_000), connections, seconds }),
            Scenario::Syncs(Syncs {
                rooms: size.of(6, 100, 1_000),
                members: size.of(3, 5, 50),
                messages: size.of(1, 3, 3),
                first: size.of(2, 5, 5),
                further: size.of(4, 50, 200),
            }),
            Scenario::Idle(Idle {
                clients: size.of(20, 300, 10_000),
                members: 10,
                seconds: size.of(0.2, 8.0, 8.0),
            }),
            Scenario::Backlog(Backlog {
                messages: size.of(100, 10_000, 100_000),
                rate: size.of(20.0, 5.0, 20.0),
                seconds,
            }),
        ]);
        if two {
            all.push(Scenario::Federated(Federated {
                rooms: size.of(1, 5, 10),
                members: size.of(2, 10, 10),
                rate: 5.0,
                step: self.step,
                seconds,
            }));
            all.push(Scenario::RemoteJoin(RemoteJoin {
                members: size.of(10, 200, 5_000),
                messages: size.of(3, 20, 50),
            }));
        }
        all
    }

    fn delivery(&self, rate: f64, step: bool) -> Scenario {
        Scenario::Delivery(Delivery {
            rooms: self.size.of(2, 10, 10),
            members: self.size.of(3, 10, 10),
            silent: 0,
            rate: if self.size == Size::Tiny { 20.0 } else { rate },
            step,
            seconds: self.size.of(0.3, 10.0, 15.0),
            senders: self.size.of(4, 64, 64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_has_every_scenario_once_without_steps() {
        for size in Size::value_variants() {
            let all = All { size: *size, step: false };
            let mut names: Vec<_> = all.scenarios(true).iter().map(Scenario::name).collect();
            assert_eq!(all.scenarios(false).len() + 2, names.len());
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!((names.len(), count), (11, 11));
        }
    }
}
