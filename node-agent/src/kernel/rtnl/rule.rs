//! ip rules.

use egressnat_crds::plan::Family;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::observed::ForeignRule;
use super::route::{address_family, family};
use crate::model::IpRule;
use crate::owned::Numbers;

/// What a rule has that suppresses nothing.
const NO_SUPPRESSION: u32 = u32::MAX;

/// A rule that concerns us.
pub(super) enum Seen {
    Ours(IpRule),
    Stray(RuleMessage),
    Foreign(ForeignRule),
}

/// Asks for all rules of a family.
pub(super) fn get_all(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    RouteNetlinkMessage::GetRule(message)
}

/// The message that puts or removes `rule`.
pub(super) fn write(rule: &IpRule) -> RuleMessage {
    let IpRule {
        family,
        priority,
        mark,
        mask,
        table,
    } = rule;
    let mut message = RuleMessage::default();
    message.header.family = address_family(*family);
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(*table).unwrap_or(0);
    message.attributes = vec![
        RuleAttribute::Priority(*priority),
        RuleAttribute::FwMark(*mark),
        RuleAttribute::FwMask(*mask),
        RuleAttribute::Table(*table),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    message
}

/// What a rule is to us: ours by its priority and mask, or by its mask and table where it was made under
/// another priority.
pub(super) fn read(message: RuleMessage, numbers: &Numbers) -> Option<Seen> {
    let family = family(message.header.family)?;
    let Fields {
        priority,
        mark,
        mask,
        table,
        protocol,
        plain,
    } = Fields::of(&message);
    let at_ours = priority == numbers.rule_priority;
    let ours = mask == numbers.mark_mask && (at_ours || numbers.owns_table(table));
    if !ours {
        let foreign = at_ours || mask & numbers.mark_mask != 0 || numbers.owns_table(table);
        return foreign.then_some(Seen::Foreign(ForeignRule {
            family,
            priority,
            mark,
            mask,
            inverted: message.header.flags.contains(RuleFlags::Invert),
            table,
        }));
    }
    match at_ours && plain && protocol == RouteProtocol::Kernel {
        true => Some(Seen::Ours(IpRule {
            family,
            priority,
            mark,
            mask,
            table,
        })),
        false => Some(Seen::Stray(message)),
    }
}

struct Fields {
    priority: u32,
    mark: u32,
    mask: u32,
    table: u32,
    protocol: RouteProtocol,
    /// Has no more to it than [`IpRule`] can say.
    plain: bool,
}

impl Fields {
    fn of(message: &RuleMessage) -> Self {
        let header = &message.header;
        let mut fields = Self {
            priority: 0,
            mark: 0,
            mask: 0,
            table: header.table.into(),
            protocol: RouteProtocol::Unspec,
            plain: header.action == RuleAction::ToTable
                && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
                && !header.flags.contains(RuleFlags::Invert),
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => fields.priority = *priority,
                RuleAttribute::FwMark(mark) => fields.mark = *mark,
                RuleAttribute::FwMask(mask) => fields.mask = *mask,
                RuleAttribute::Table(table) => fields.table = *table,
                RuleAttribute::Protocol(protocol) => fields.protocol = *protocol,
                RuleAttribute::SuppressPrefixLen(NO_SUPPRESSION) => {}
                _ => fields.plain = false,
            }
        }
        fields
    }
}
