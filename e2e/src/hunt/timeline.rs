//! A value that others change, and which of its values may be in force at a moment.

/// Nanoseconds since the epoch, on this machine's clock; the kernel stamps captured packets with the same.
pub type Time = u64;

/// The values of something, in the order in which they were sent to the API server.
#[derive(Debug, Clone)]
pub struct Timeline<T> {
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    value: T,
    sent: Time,
    in_place: Option<Time>,
}

impl<T> Timeline<T> {
    /// A value that has been in force for as long as anybody can tell.
    pub fn new(value: T) -> Self {
        let first = Entry {
            value,
            sent: 0,
            in_place: Some(0),
        };
        Self { entries: vec![first] }
    }

    /// Another value is about to be sent: from now on it may be in force.
    pub fn change(&mut self, value: T, now: Time) {
        self.entries.push(Entry {
            value,
            sent: now,
            in_place: None,
        });
    }

    /// All that was sent is in place: from now on, what was before is not in force.
    pub fn settle(&mut self, now: Time) {
        for entry in &mut self.entries {
            entry.in_place.get_or_insert(now);
        }
    }

    /// The value that was sent last.
    pub fn last(&self) -> &T {
        &self.entries[self.entries.len() - 1].value
    }

    /// The values that may have been in force at some moment from `from` to `to`, both included.
    pub fn possible(&self, from: Time, to: Time) -> impl Iterator<Item = &T> {
        let is_in_place = |entry: &Entry<T>| entry.in_place.is_some_and(|since| since <= from);
        let first = self.entries.iter().rposition(is_in_place).unwrap_or(0);
        let sent = self.entries[first..]
            .iter()
            .take_while(move |entry| entry.sent <= to);
        sent.map(|entry| &entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn possible(timeline: &Timeline<char>, from: Time, to: Time) -> String {
        timeline.possible(from, to).collect()
    }

    #[test]
    fn between_sent_and_in_place_both_values_are_possible() {
        let mut timeline = Timeline::new('a');
        timeline.change('b', 10);
        timeline.settle(20);
        assert_eq!(possible(&timeline, 9, 9), "a");
        assert_eq!(possible(&timeline, 10, 10), "ab");
        assert_eq!(possible(&timeline, 19, 19), "ab");
        assert_eq!(possible(&timeline, 20, 20), "b");
    }

    #[test]
    fn what_is_not_in_place_yet_may_be_any_time() {
        let mut timeline = Timeline::new('a');
        timeline.change('b', 10);
        timeline.change('c', 12);
        assert_eq!(possible(&timeline, 11, 11), "ab");
        assert_eq!(possible(&timeline, 99, 99), "abc");
        timeline.settle(100);
        assert_eq!(possible(&timeline, 100, 100), "c");
    }

    #[test]
    fn a_span_has_what_was_possible_at_its_start_and_all_that_came() {
        let mut timeline = Timeline::new('a');
        timeline.change('b', 10);
        timeline.settle(20);
        timeline.change('c', 30);
        timeline.settle(40);
        assert_eq!(possible(&timeline, 5, 50), "abc");
        assert_eq!(possible(&timeline, 25, 29), "b");
        assert_eq!(possible(&timeline, 25, 50), "bc");
    }
}
