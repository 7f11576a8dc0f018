//! Hosts, the ranks on them, and what it takes to send bytes between them.

/// One rank's way to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Link {
    /// Seconds of a message, however short.
    pub latency: f64,
    /// Bytes a second, each way.
    pub bandwidth: f64,
}

/// The ranks of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cluster {
    pub n_ranks: usize,
    /// Ranks of one host.
    pub per_host: usize,
    /// Within a host.
    pub near: Link,
    /// Between hosts.
    pub far: Link,
    /// Bytes of received parts a second that a rank adds up.
    pub adding: f64,
}

/// Ranks that exchange an array: neighbors, from the first one of a host on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circle {
    /// All of them.
    All,
    /// Those of each host.
    Host,
}

/// What an exchange is for a rank that has a part: of those, where some have none, each has most to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exchange {
    pub seconds: f64,
    /// Bytes sent.
    pub sent: f64,
}

impl Cluster {
    /// Ranks of such a circle.
    pub(crate) fn size(&self, circle: Circle) -> usize {
        match circle {
            Circle::All => self.n_ranks,
            Circle::Host => self.per_host.min(self.n_ranks),
        }
    }

    /// Every rank of a circle sends one part of `part` bytes to, or gets one from, each other one.
    fn parts(&self, circle: Circle, part: f64) -> f64 {
        let n = self.size(circle);
        let near = (self.size(Circle::Host).min(n) - 1) as f64;
        let far = (n - 1) as f64 - near;
        // Both ways are used at once.
        let near_seconds = near * part / self.near.bandwidth;
        let far_seconds = far * part / self.far.bandwidth;
        near * self.near.latency + far * self.far.latency + near_seconds.max(far_seconds)
    }

    /// An array of `bytes` that lies in `n_parts` parts on as many ranks is put together on all ranks.
    /// Who has a part sends it to all others, as `Line::all_gather_ranges` counts it.
    pub(crate) fn gather(&self, circle: Circle, bytes: f64, n_parts: usize) -> Exchange {
        let n = self.size(circle);
        let part = bytes / n_parts.min(n) as f64;
        Exchange { seconds: self.parts(circle, part), sent: part * (n - 1) as f64 }
    }

    /// Arrays of `bytes`, one of each rank, are added up in `n_parts` parts on as many ranks
    /// (`Line::reduce_scatter`): each sends all parts but its own, and adds up those that come.
    pub(crate) fn reduce(&self, circle: Circle, bytes: f64, n_parts: usize) -> Exchange {
        let n = self.size(circle);
        let n_parts = n_parts.min(n);
        let part = bytes / n_parts as f64;
        let added = part * (n - 1) as f64 / self.adding;
        let sent = part * (n_parts - 1) as f64;
        Exchange { seconds: self.parts(circle, part) + added, sent }
    }

    /// Some bytes of each rank become known to all: a count, a loss.
    pub(crate) fn word(&self) -> f64 {
        self.parts(Circle::All, 0.0)
    }

    /// The same ranks without latency and with sums for nothing: what no exchange can be faster than.
    pub(crate) fn ideal(&self) -> Self {
        let at_once = |link: Link| Link { latency: 0.0, ..link };
        Self { near: at_once(self.near), far: at_once(self.far), adding: f64::INFINITY, ..*self }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "quotients of small whole numbers")]
pub(super) mod tests {
    use super::{Circle, Cluster, Exchange, Link};

    /// Two bytes a second within a host, one between hosts, nothing for a message or a sum.
    pub(in super::super) fn slow(n_ranks: usize, per_host: usize) -> Cluster {
        Cluster {
            n_ranks,
            per_host,
            near: Link { latency: 0.0, bandwidth: 2.0 },
            far: Link { latency: 0.0, bandwidth: 1.0 },
            adding: f64::INFINITY,
        }
    }

    /// 16 bytes on 4 ranks are 4 bytes each: three of them are sent, at 2 bytes a second.
    #[test]
    fn an_array_costs_what_the_other_ranks_have_of_it() {
        let expected = Exchange { seconds: 6.0, sent: 12.0 };
        assert_eq!(slow(4, 4).gather(Circle::All, 16.0, 4), expected);
        assert_eq!(slow(4, 4).reduce(Circle::All, 16.0, 4), expected);
        let alone = Exchange { seconds: 0.0, sent: 0.0 };
        assert_eq!(slow(1, 8).gather(Circle::All, 16.0, 1), alone);
        assert_eq!(slow(1, 8).reduce(Circle::All, 16.0, 1), alone);
    }

    /// Hosts of 2: one part goes to the neighbor in 2 seconds, two to the other host in 8.
    #[test]
    fn the_way_between_hosts_holds_up_the_one_within() {
        let cluster = slow(4, 2);
        assert_eq!(cluster.gather(Circle::All, 16.0, 4).seconds, 8.0);
        let host = cluster.gather(Circle::Host, 16.0, 2);
        assert_eq!(host, Exchange { seconds: 4.0, sent: 8.0 });
        let messages = Link { latency: 0.5, bandwidth: 1.0 };
        assert_eq!(Cluster { far: messages, ..cluster }.word(), 1.0);
    }

    /// 16 bytes in 2 parts on 4 ranks: an owner gets three parts of 8 bytes and gives one away, and
    /// sends its own three times.
    #[test]
    fn few_owners_have_more_to_do() {
        let cluster = Cluster { adding: 6.0, ..slow(4, 4) };
        let reduced = cluster.reduce(Circle::All, 16.0, 2);
        assert_eq!(reduced, Exchange { seconds: 12.0 + 4.0, sent: 8.0 });
        assert_eq!(cluster.gather(Circle::All, 16.0, 2).sent, 24.0);
    }
}
