//! One transaction as netlink messages, put together by libnftnl.
#![expect(unsafe_code, reason = "libnftnl is a C library")]

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::io::IoSlice;
use std::ptr::NonNull;

use nftnl::{FinalizedBatch, MsgType, NlMsg};
use nftnl_sys as sys;

use super::elements::{RawData, RawElement};
use super::expr::Expr;
use super::lower::verdict_code;
use super::name::Name;
use super::value::Value;
use crate::owned;

/// A transaction while it is put together. Messages belong to the step that was begun last.
pub struct Batch {
    messages: nftnl::Batch,
    table: Name,
    step: usize,
    /// The step of each message, and the first message's sequence number.
    steps: Vec<usize>,
    first: u32,
}

/// A transaction to be sent.
pub struct Transaction {
    messages: FinalizedBatch,
    steps: Vec<usize>,
    first: u32,
}

/// What a set is made with.
pub struct SetSpec {
    /// `NFT_SET_*`.
    pub flags: u32,
    /// nft's number of the type of the keys, and their length in octets.
    pub key: (u32, u32),
    /// The same of the data, in a map.
    pub data: Option<(u32, u32)>,
    /// What `nft` has to know to show it.
    pub user_data: Vec<u8>,
}

/// What a base chain is made with.
pub struct BaseSpec {
    /// `filter` or `nat`.
    pub kind: &'static CStr,
    /// `NF_INET_*`.
    pub hook: u32,
    /// Priority at the hook.
    pub priority: i32,
}

/// Which message about an object: `NFT_MSG_*`, and the flags that belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Verb {
    /// `NFT_MSG_*`.
    pub kind: i32,
    /// `NLM_F_*` besides `NLM_F_REQUEST`.
    pub flags: i32,
}

const NFT_OBJECT_COUNTER: u32 = 1;

/// How long user data may be (`NFT_USERDATA_MAXLEN`).
const USER_DATA_MAX: usize = 255;

/// How many expressions a rule may have (`NFT_RULE_MAXEXPRS`).
const MAX_EXPRS: usize = 128;

/// How many elements libnftnl holds at a time: its objects are far larger than what is sent.
const ELEMENTS_AT_ONCE: usize = 512;

impl Batch {
    /// An empty transaction.
    pub fn new() -> Result<Self, &'static str> {
        Ok(Self {
            messages: nftnl::Batch::new(),
            table: Name::new(owned::TABLE)?,
            step: 0,
            steps: Vec::new(),
            first: 0,
        })
    }

    /// The messages that follow belong to this step.
    pub fn begin_step(&mut self, step: usize) {
        self.step = step;
    }

    /// A message about the table, or about one of another name.
    pub fn table(&mut self, verb: Verb, name: Option<&Name>, flags: Option<u32>) {
        // SAFETY: the attributes are a table's own, of the types of their setters; texts are copied.
        let table = unsafe {
            let table = Owned::new(sys::nftnl_table_alloc(), sys::nftnl_table_free);
            let name = name.unwrap_or(&self.table).as_ptr();
            sys::nftnl_table_set_str(table.raw(), sys::NFTNL_TABLE_NAME as u16, name);
            if let Some(flags) = flags {
                sys::nftnl_table_set_u32(table.raw(), sys::NFTNL_TABLE_FLAGS as u16, flags);
            }
            table
        };
        // SAFETY: the header has room for a message, the object is live.
        self.push(verb, |header| unsafe {
            sys::nftnl_table_nlmsg_build_payload(header, table.raw())
        });
    }

    /// A message about a named counter.
    pub fn counter(&mut self, verb: Verb, name: &Name) {
        // SAFETY: the attributes are an object's own, of the types of their setters; texts are copied.
        let counter = unsafe {
            let counter = Owned::new(sys::nftnl_obj_alloc(), sys::nftnl_obj_free);
            sys::nftnl_obj_set_u32(counter.raw(), sys::NFTNL_OBJ_TYPE as u16, NFT_OBJECT_COUNTER);
            sys::nftnl_obj_set_str(counter.raw(), sys::NFTNL_OBJ_TABLE as u16, self.table.as_ptr());
            sys::nftnl_obj_set_str(counter.raw(), sys::NFTNL_OBJ_NAME as u16, name.as_ptr());
            counter
        };
        // SAFETY: the header has room for a message, the object is live.
        self.push(verb, |header| unsafe {
            sys::nftnl_obj_nlmsg_build_payload(header, counter.raw())
        });
    }

    /// A message about a set, with what it is made of where it is made.
    pub fn set(&mut self, verb: Verb, name: &Name, spec: Option<&SetSpec>) {
        let set = self.set_named(name);
        if let Some(SetSpec {
            flags,
            key,
            data,
            user_data,
        }) = spec
        {
            // The kernel wants a number that is unique within the transaction, though names will do.
            let id = self.steps.len() as u32 + 1;
            let mut numbers = vec![
                (sys::NFTNL_SET_ID, id),
                (sys::NFTNL_SET_FLAGS, *flags),
                (sys::NFTNL_SET_KEY_TYPE, key.0),
                (sys::NFTNL_SET_KEY_LEN, key.1),
            ];
            if let Some((ty, length)) = *data {
                numbers.extend([(sys::NFTNL_SET_DATA_TYPE, ty), (sys::NFTNL_SET_DATA_LEN, length)]);
            }
            for (attr, number) in numbers {
                // SAFETY: the attributes are a set's own, of 32 bits.
                unsafe { sys::nftnl_set_set_u32(set.raw(), attr as u16, number) };
            }
            let length = user_data.len().min(USER_DATA_MAX) as u32;
            let data = user_data.as_ptr().cast();
            // SAFETY: the attribute is a set's own, of data, which is copied.
            unsafe { sys::nftnl_set_set_data(set.raw(), sys::NFTNL_SET_USERDATA as u16, data, length) };
        }
        // SAFETY: the header has room for a message, the object is live.
        self.push(verb, |header| unsafe {
            sys::nftnl_set_nlmsg_build_payload(header, set.raw())
        });
    }

    /// Messages about a set's elements, as many as it takes: an attribute holds 64 KiB.
    pub fn elements(&mut self, verb: Verb, set: &Name, elements: &[RawElement]) -> Result<(), &'static str> {
        for some in elements.chunks(ELEMENTS_AT_ONCE) {
            let set = self.set_named(set);
            for element in some {
                add_element(&set, element)?;
            }
            // SAFETY: the set is live while the iterator is.
            let iter = unsafe {
                Owned::new(
                    sys::nftnl_set_elems_iter_create(set.raw()),
                    free_iter as unsafe extern "C" fn(*const _),
                )
            };
            let mut more = true;
            while more {
                let left = Cell::new(false);
                // SAFETY: the header has room for a message, set and iterator are live. The call stops at
                // 64 KiB and then says that there is more.
                self.push(verb, |header| unsafe {
                    left.set(sys::nftnl_set_elems_nlmsg_build_payload_iter(header, iter.raw()) > 0)
                });
                more = left.get();
            }
        }
        Ok(())
    }

    /// A message about a chain.
    pub fn chain(&mut self, verb: Verb, name: &Name, base: Option<&BaseSpec>) {
        // SAFETY: the attributes are a chain's own, of the types of their setters; texts are copied.
        let chain = unsafe {
            let chain = Owned::new(sys::nftnl_chain_alloc(), sys::nftnl_chain_free);
            sys::nftnl_chain_set_str(chain.raw(), sys::NFTNL_CHAIN_TABLE as u16, self.table.as_ptr());
            sys::nftnl_chain_set_str(chain.raw(), sys::NFTNL_CHAIN_NAME as u16, name.as_ptr());
            if let Some(BaseSpec { kind, hook, priority }) = base {
                sys::nftnl_chain_set_str(chain.raw(), sys::NFTNL_CHAIN_TYPE as u16, kind.as_ptr());
                sys::nftnl_chain_set_u32(chain.raw(), sys::NFTNL_CHAIN_HOOKNUM as u16, *hook);
                sys::nftnl_chain_set_s32(chain.raw(), sys::NFTNL_CHAIN_PRIO as u16, *priority);
                sys::nftnl_chain_set_u32(
                    chain.raw(),
                    sys::NFTNL_CHAIN_POLICY as u16,
                    libc::NF_ACCEPT as u32,
                );
            }
            chain
        };
        // SAFETY: the header has room for a message, the object is live.
        self.push(verb, |header| unsafe {
            sys::nftnl_chain_nlmsg_build_payload(header, chain.raw())
        });
    }

    /// A message about a rule of the chain; without expressions and comment, about all its rules.
    pub fn rule(
        &mut self,
        verb: Verb,
        chain: &Name,
        exprs: Vec<Expr>,
        comment: Option<&Name>,
    ) -> Result<(), &'static str> {
        if exprs.len() > MAX_EXPRS {
            return Err("a rule must not have more than 128 expressions");
        }
        // SAFETY: the attributes are a rule's own, of the types of their setters; texts and data are copied.
        let rule = unsafe {
            let rule = Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free);
            sys::nftnl_rule_set_str(rule.raw(), sys::NFTNL_RULE_TABLE as u16, self.table.as_ptr());
            sys::nftnl_rule_set_str(rule.raw(), sys::NFTNL_RULE_CHAIN as u16, chain.as_ptr());
            if let Some(comment) = comment {
                let data = comment.as_user_data();
                sys::nftnl_rule_set_data(
                    rule.raw(),
                    sys::NFTNL_RULE_USERDATA as u16,
                    data.as_ptr().cast(),
                    data.len() as u32,
                );
            }
            rule
        };
        for expr in exprs {
            // SAFETY: the expression is live and passes to the rule, which frees it.
            unsafe { sys::nftnl_rule_add_expr(rule.raw(), expr.into_raw().as_ptr()) };
        }
        // SAFETY: the header has room for a message, the object is live. A rule has at most 128 expressions
        // of at most one name and two values each: less than 64 KiB.
        self.push(verb, |header| unsafe {
            sys::nftnl_rule_nlmsg_build_payload(header, rule.raw())
        });
        Ok(())
    }

    /// The transaction as it will be sent.
    pub fn finalize(self) -> Transaction {
        Transaction {
            messages: self.messages.finalize(),
            steps: self.steps,
            first: self.first,
        }
    }

    fn set_named(&self, name: &Name) -> Owned<sys::nftnl_set> {
        // SAFETY: the attributes are a set's own texts, which are copied.
        unsafe {
            let set = Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free);
            sys::nftnl_set_set_str(set.raw(), sys::NFTNL_SET_TABLE as u16, self.table.as_ptr());
            sys::nftnl_set_set_str(set.raw(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
            set
        }
    }

    fn push(&mut self, verb: Verb, fill: impl Fn(*mut libc::nlmsghdr)) {
        let message = Message {
            verb,
            fill,
            seq: Cell::new(0),
        };
        self.messages.add(&message, MsgType::Add);
        if self.steps.is_empty() {
            self.first = message.seq.get();
        }
        self.steps.push(self.step);
    }
}

impl Transaction {
    /// The octets to send, in one message.
    pub fn pages(&self) -> Vec<IoSlice<'_>> {
        self.messages.iter().map(IoSlice::new).collect()
    }

    /// The step that the message of this sequence number belongs to; `None` of the messages that begin and
    /// end the transaction.
    pub fn step(&self, seq: u32) -> Option<usize> {
        let index = seq.checked_sub(self.first)?;
        self.steps.get(index as usize).copied()
    }

    /// The sequence number with which the kernel confirms the transaction; `None` where it is too old
    /// (before 6.10) to do so, and silence is consent.
    pub fn confirmation(&self) -> Option<u32> {
        // The message that begins the transaction has a number of its own only if it is to be confirmed.
        (self.first > 1).then(|| self.first + self.steps.len() as u32)
    }
}

/// A message for libnftnl's batch.
struct Message<F> {
    verb: Verb,
    fill: F,
    seq: Cell<u32>,
}

// SAFETY: all that `fill` writes is bounded where it is called: names of 255 octets, values of 16, rules of
// 128 expressions, lists of elements of 64 KiB.
unsafe impl<F: Fn(*mut libc::nlmsghdr)> NlMsg for Message<F> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, _: MsgType) {
        self.seq.set(seq);
        // SAFETY: the caller gives a buffer with room for the largest message.
        let header = unsafe {
            sys::nftnl_nlmsg_build_hdr(
                buf.cast(),
                self.verb.kind as u16,
                libc::NFPROTO_INET as u16,
                self.verb.flags as u16,
                seq,
            )
        };
        (self.fill)(header);
    }
}

fn add_element(set: &Owned<sys::nftnl_set>, element: &RawElement) -> Result<(), &'static str> {
    let RawElement { key, end, data } = element;
    let verdict = match data {
        RawData::Verdict(verdict) => Some(verdict_code(verdict)?),
        RawData::None | RawData::Value(_) => None,
    };
    // SAFETY: the object is live; the attributes are an element's own, of the types of their setters; all is
    // copied. The set takes the element over and frees it.
    unsafe {
        let raw = sys::nftnl_set_elem_alloc();
        assert!(!raw.is_null(), "out of memory");
        set_element_value(raw, sys::NFTNL_SET_ELEM_KEY, key);
        if *end {
            let flags = libc::NFT_SET_ELEM_INTERVAL_END as u32;
            sys::nftnl_set_elem_set_u32(raw, sys::NFTNL_SET_ELEM_FLAGS as u16, flags);
        }
        if let RawData::Value(value) = data {
            set_element_value(raw, sys::NFTNL_SET_ELEM_DATA, value);
        }
        if let Some((code, chain)) = &verdict {
            sys::nftnl_set_elem_set_u32(raw, sys::NFTNL_SET_ELEM_VERDICT as u16, *code as u32);
            if let Some(chain) = chain {
                sys::nftnl_set_elem_set_str(raw, sys::NFTNL_SET_ELEM_CHAIN as u16, chain.as_ptr());
            }
        }
        sys::nftnl_set_elem_add(set.raw(), raw);
    }
    Ok(())
}

/// # Safety
/// The element is live, and the attribute one of its register-sized data.
unsafe fn set_element_value(element: *mut sys::nftnl_set_elem, attr: u32, value: &Value) {
    let octets = value.as_slice();
    // SAFETY: the octets are copied, and fewer than the 64 that the attribute holds.
    unsafe { sys::nftnl_set_elem_set(element, attr as u16, octets.as_ptr().cast(), octets.len() as u32) };
}

unsafe extern "C" fn free_iter(iter: *const sys::nftnl_set_elems_iter) {
    // SAFETY: called once, by the owner.
    unsafe { sys::nftnl_set_elems_iter_destroy(iter.cast_mut()) }
}

/// An object of libnftnl's that is freed with its owner.
struct Owned<T> {
    raw: NonNull<T>,
    free: unsafe extern "C" fn(*const T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `raw` is null or a live object that nobody else frees, and `free` frees such objects.
    unsafe fn new(raw: *mut T, free: unsafe extern "C" fn(*const T)) -> Self {
        let raw = NonNull::new(raw).expect("out of memory");
        Self { raw, free }
    }

    fn raw(&self) -> *mut T {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object is live, and not used after.
        unsafe { (self.free)(self.raw.as_ptr()) }
    }
}
