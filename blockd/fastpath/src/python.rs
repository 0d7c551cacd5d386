//! The seam: what Python may call. Typed in `_native.pyi`, which a test holds against this.

use crate::busy::ONE_OF;
use crate::chain::{self, Act, ZoneAnswers};
use crate::counters::{DecisionCount, LATENCY_BOUNDS_US, Took};
use crate::decide::{AppMask, Sections, Template, Tuning, View, Views, Zone};
use crate::endpoint::{Endpoint, Transport};
use crate::identity::{Address, Identity};
use crate::journal::Kind;
use crate::lists::rpz::Trigger;
use crate::lists::{self, Format, Says};
use crate::lock;
use crate::nat64::Nat64Prefix;
use crate::patterns::Patterns;
use crate::pending::Origin;
use crate::prefixes::{Prefix, PrefixTable};
use crate::resolve::{Arrival, Command, Core, Outcome, Policy, Streamed, Work, abort_on_unguarded_panic};
use crate::serve::Listeners;
use crate::slots::{Folded, Slot};
use crate::snapshot::{self, AppInput, Compiled, ListInput, RuleKind, RulesInput};
use crate::sockets::{Entropy, Outbound};
use crate::wire::{FoldedName, rcode};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Pieces of work that Python takes in one turn: a reply costs it about 50 us, and no turn may take 20 ms.
const WORK_AT_ONCE: usize = 128;

/// Reads a PROXY header of version 2 at the beginning: its length, and whose address it conveys, None where it speaks for
/// itself; None as a whole where there is none, or not all of it yet.
#[pyfunction]
fn proxy_header(data: &[u8]) -> Option<(usize, Option<String>)> {
    let (rest, proxied) = crate::wire::strip_proxy(data);
    proxied.map(|address| (data.len() - rest.len(), address.map(|address| IpAddr::from(address).to_string())))
}

/// Who asked, for people: the address, and the MAC where a forwarder conveys it.
fn client_text(kind: &Kind) -> String {
    let address = IpAddr::from(kind.address);
    if kind.mac == 0 {
        return address.to_string();
    }
    let [_, _, octets @ ..] = kind.mac.to_be_bytes();
    let mac: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{} by {address}", mac.join(":"))
}

fn bad(text: impl Into<String>) -> PyErr {
    PyValueError::new_err(text.into())
}

fn rule_name(text: &str) -> PyResult<FoldedName> {
    FoldedName::from_rule_text(text.as_bytes()).map_err(|why| bad(why.text()))
}

fn presented_name(text: &str) -> PyResult<FoldedName> {
    FoldedName::from_presentation(text.as_bytes()).map_err(|why| bad(why.text()))
}

/// Reads a name as rules write it; gives it folded. ValueError says what is wrong.
#[pyfunction]
fn fold_rule_name(text: &str) -> PyResult<String> {
    Ok(rule_name(text)?.to_string())
}

/// Reads a name in presentation form (RFC 1035 5.1), as the decisions log writes it; gives it folded, written that way.
/// ValueError says what is wrong.
#[pyfunction]
fn read_presentation(text: &str) -> PyResult<String> {
    Ok(presented_name(text)?.to_string())
}

/// Whether a folded name is a public suffix of the ICANN section.
#[pyfunction]
fn is_public_suffix(name: &str) -> PyResult<bool> {
    Ok(lists::is_public_suffix(&rule_name(name)?))
}

/// The first line of a list that gives a name, as the compiler reads it. OSError when it cannot be read.
#[pyfunction]
fn line_of(list: PathBuf, format: &str, name: &str, to_ascii: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    let format = Format::from_word(format).ok_or_else(|| bad(format!("no list format is called {format}")))?;
    let file = File::open(&list)?;
    let (name, is_below) = match name.strip_prefix('*') {
        Some("") => (FoldedName::ROOT, true),
        Some(rest) => (rule_name(rest.trim_start_matches('.'))?, true),
        None => (rule_name(name)?, false),
    };
    Ok(lists::line_of(file, format, (&name, is_below), &mut ascii_by(to_ascii))?)
}

fn data_by<'py>(call: &'py Bound<'_, PyAny>) -> impl FnMut(&str, &str) -> Option<(u16, Vec<u8>)> + 'py {
    // As with names: an error in the callback is a record that cannot be read.
    |kind: &str, text: &str| call.call1((kind, text)).ok()?.extract().ok()
}

fn ascii_by<'py>(call: &'py Bound<'_, PyAny>) -> impl FnMut(&str) -> Option<String> + 'py {
    // An error in the callback is a name that cannot be converted, and so a skipped line.
    |text: &str| call.call1((text,)).ok()?.extract().ok()
}

/// Where a server is reached, as `blockd.endpoint.Endpoint` has it.
#[derive(FromPyObject, PartialEq, Eq, Hash)]
struct PyEndpoint {
    transport: String,
    address: IpAddr,
    scope: String,
    port: u16,
    name: String,
}

fn endpoint(endpoint: PyEndpoint) -> PyResult<Endpoint> {
    let PyEndpoint { transport, address, scope, port, name } = endpoint;
    let transport =
        Transport::from_word(&transport).ok_or_else(|| bad(format!("no transport is called {transport}")))?;
    Ok(Endpoint { transport, address, scope: scope.into(), port, name: name.into() })
}

/// The fields of an endpoint in the order in which `Endpoint.from_native` reads them.
fn endpoint_fields(endpoint: &Endpoint) -> (&'static str, String, &str, u16, &str) {
    let Endpoint { transport, address, scope, port, name } = endpoint;
    (transport.word(), address.to_string(), scope, *port, name)
}

fn nat64_prefix((address, length): Network) -> PyResult<Nat64Prefix> {
    let prefix = if let IpAddr::V6(v6) = address { Nat64Prefix::new(v6.to_bits(), length) } else { None };
    prefix.ok_or_else(|| bad(format!("{address}/{length} is not a NAT64 prefix")))
}

/// The number of an interface, by its name or number; None when there is no such interface.
#[pyfunction]
fn interface_index(scope: &str) -> Option<u32> {
    crate::sockets::interface_index(scope)
}

/// The addresses of this machine's interfaces.
#[pyfunction]
fn own_addresses() -> Vec<IpAddr> {
    crate::sockets::own_addresses()
}

type Network = (IpAddr, u8);
type PySections = (u16, u16, Vec<u8>);
/// App by app, list by list.
type ListReports<'py> = Vec<Vec<Bound<'py, PyDict>>>;

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyList {
    file: PathBuf,
    format: String,
    is_hole: bool,
    public_suffix: bool,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyApp {
    suffixes: Vec<String>,
    hosts: Vec<String>,
    holes: Vec<String>,
    lists: Vec<PyList>,
    networks: Vec<Network>,
    needs: u64,
    zone_answers: ZoneAnswers,
    embedded: bool,
    patterns: Vec<String>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyTemplate {
    rcode: u16,
    is_silent: bool,
    by_type: HashMap<u16, PySections>,
    otherwise: PySections,
    error: Option<(u16, Vec<u8>)>,
    structured_error: Option<Vec<u8>>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyRules {
    digest: [u8; 16],
    apps: Vec<PyApp>,
    templates: Vec<PyTemplate>,
    local_zones: Vec<(String, u16, u16)>,
    routed_zones: Vec<(String, u16)>,
    routes: Vec<Vec<PyEndpoint>>,
    nat64: Vec<Network>,
    any_template: u16,
    cdn_zones: Vec<String>,
    guarded: Vec<String>,
    local_names: Vec<(String, u16)>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PyViews {
    views: Vec<View>,
    devices: Vec<(IpAddr, u8, u32)>,
    unidentified: u16,
    clients: Vec<Network>,
    tuning: Tuning,
}

fn network((address, length): Network) -> PyResult<(Address, u8)> {
    snapshot::network(address, length).ok_or_else(|| bad(format!("{address}/{length} is no network")))
}

fn sections((answer, authority, body): PySections) -> Sections {
    Sections { answer, authority, body }
}

fn list_input(list: PyList) -> PyResult<ListInput> {
    let format =
        Format::from_word(&list.format).ok_or_else(|| bad(format!("no list format is called {}", list.format)))?;
    Ok(ListInput { file: list.file, format, is_hole: list.is_hole, may_be_public: list.public_suffix })
}

fn rules_input(rules: PyRules) -> PyResult<RulesInput> {
    let names = |kind: RuleKind, names: Vec<String>| {
        names.into_iter().map(|n| Ok((kind, rule_name(&n)?))).collect::<PyResult<Vec<_>>>()
    };
    let mut apps = Vec::new();
    for app in rules.apps {
        let mut input = AppInput {
            needs: AppMask(app.needs),
            embedded: app.embedded,
            patterns: app.patterns,
            zone_answers: app.zone_answers,
            ..AppInput::default()
        };
        input.rules.extend(names(RuleKind::Suffix, app.suffixes)?);
        input.rules.extend(names(RuleKind::Host, app.hosts)?);
        input.rules.extend(names(RuleKind::Hole, app.holes)?);
        input.lists = app.lists.into_iter().map(list_input).collect::<PyResult<_>>()?;
        input.networks = app.networks.into_iter().map(network).collect::<PyResult<_>>()?;
        apps.push(input);
    }
    if apps.len() > AppMask::WIDTH {
        return Err(bad(format!("{} apps are live, at most {} can be", apps.len(), AppMask::WIDTH)));
    }
    let local =
        rules.local_zones.into_iter().map(|(name, apex, below)| Ok((rule_name(&name)?, Zone::Local { apex, below })));
    let hosts = rules.local_names.into_iter().map(|(name, template)| Ok((rule_name(&name)?, Zone::Host(template))));
    let routed = rules.routed_zones.into_iter().map(|(name, route)| Ok((rule_name(&name)?, Zone::Route(route))));
    Ok(RulesInput {
        digest: rules.digest,
        apps,
        templates: rules
            .templates
            .into_iter()
            .map(|t| Template {
                rcode: t.rcode,
                is_silent: t.is_silent,
                by_type: t.by_type.into_iter().map(|(qtype, s)| (qtype, sections(s))).collect(),
                otherwise: sections(t.otherwise),
                error: t.error,
                structured_error: t.structured_error,
            })
            .collect(),
        // A zone that the config points somewhere comes after, and so replaces, the one answered here.
        zones: local.chain(routed).collect::<PyResult<_>>()?,
        hosts: hosts.collect::<PyResult<_>>()?,
        guarded: rules.guarded.iter().map(|name| rule_name(name)).collect::<PyResult<_>>()?,
        cdn_zones: rules.cdn_zones.iter().map(|zone| rule_name(zone)).collect::<PyResult<_>>()?,
        routes: rules
            .routes
            .into_iter()
            .map(|route| route.into_iter().map(endpoint).collect())
            .collect::<PyResult<_>>()?,
        nat64: rules.nat64.into_iter().map(nat64_prefix).collect::<PyResult<_>>()?,
        any_template: rules.any_template,
    })
}

fn table(prefixes: Vec<(Address, u8, u32)>) -> PrefixTable {
    let prefixes: Vec<Prefix> =
        prefixes.into_iter().map(|(address, length, value)| Prefix { address, length, value }).collect();
    PrefixTable::build(&prefixes, |_, inner| inner)
}

fn views_of(views: PyViews) -> PyResult<Views> {
    let devices = views
        .devices
        .into_iter()
        .map(|(address, length, view)| network((address, length)).map(|(a, l)| (a, l, view)))
        .collect::<PyResult<_>>()?;
    let clients = views
        .clients
        .into_iter()
        .map(|n| network(n).map(|(address, length)| (address, length, 0)))
        .collect::<PyResult<_>>()?;
    let (devices, clients) = (table(devices), table(clients));
    Ok(Views { views: views.views, devices, unidentified: views.unidentified, clients, tuning: views.tuning })
}

/// What lists gain and lose against those before, each a path, a format, and whether a public suffix counts:
/// `(gained, samples, lost, samples)`.
/// OSError when one cannot be read.
#[pyfunction]
fn list_changes(
    before: Vec<(PathBuf, String, bool)>,
    after: Vec<(PathBuf, String, bool)>,
    to_ascii: &Bound<'_, PyAny>,
) -> PyResult<(u64, Vec<String>, u64, Vec<String>)> {
    let with_format = |lists: Vec<(PathBuf, String, bool)>| {
        let each = |(file, format, may_be_public): (PathBuf, String, bool)| {
            let read = Format::from_word(&format).ok_or_else(|| bad(format!("no list format is called {format}")));
            Ok((file, read?, may_be_public))
        };
        lists.into_iter().map(each).collect::<PyResult<Vec<_>>>()
    };
    let mut entropy = Entropy::default();
    let key = crate::domains::HashKey(entropy.draw(), entropy.draw());
    let found = lists::changes(&with_format(before)?, &with_format(after)?, key, &mut ascii_by(to_ascii))?;
    Ok((found.gained, found.gained_samples, found.lost, found.lost_samples))
}

/// Has this process killed when its parent ends; false when that has ended before.
#[pyfunction]
fn end_with_parent(parent: u32) -> bool {
    crate::sockets::end_with_parent(parent)
}

/// The first of these patterns that cannot be read, or with which the automaton of all grows too large, and why.
#[pyfunction]
fn check_patterns(patterns: Vec<String>) -> Option<(usize, String)> {
    Patterns::build(patterns.into_iter().map(|source| (source, AppMask::EMPTY)).collect()).err()
}

/// Compiles rules and views into a snapshot file, which is on the disk when this returns; says, app by app, what became
/// of each list. OSError when it cannot be written.
#[pyfunction]
fn compile_rules<'py>(
    py: Python<'py>,
    rules: PyRules,
    views: PyViews,
    meta: &[u8],
    to_ascii: &Bound<'py, PyAny>,
    to_data: &Bound<'py, PyAny>,
    output: PathBuf,
) -> PyResult<ListReports<'py>> {
    crate::sockets::keep_no_large_blocks();
    let mut entropy = Entropy::default();
    let key = crate::domains::HashKey(entropy.draw(), entropy.draw());
    let views = views_of(views)?;
    let Compiled { rules, entries, reports } =
        snapshot::build_rules(rules_input(rules)?, key, &mut ascii_by(to_ascii), &mut data_by(to_data)).map_err(bad)?;
    let unwritten = |error: io::Error| io_error(&output.display().to_string(), &error);
    let mut file = File::create(&output).map_err(unwritten)?;
    snapshot::encode(&rules, &entries, &views, meta, &mut file).map_err(unwritten)?;
    file.sync_all().map_err(unwritten)?;
    drop((rules, entries));
    // Whatever the daemon would refuse is refused here.
    read_snapshot(&output).map_err(|why| bad(format!("the snapshot cannot be read back: {why}")))?;
    reports.iter().map(|lists| lists.iter().map(|list| report(py, list)).collect()).collect()
}

/// Reads one list as a compile would, and says what would become of it. OSError when it cannot be read.
#[pyfunction]
fn read_list<'py>(
    py: Python<'py>,
    list: PyList,
    guarded: Vec<String>,
    to_ascii: &Bound<'py, PyAny>,
    to_data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let app = AppInput { lists: vec![list_input(list)?], ..AppInput::default() };
    let guarded = guarded.iter().map(|name| rule_name(name)).collect::<PyResult<_>>()?;
    // Local data is answered by templates beside this one.
    let templates = vec![Template::default()];
    let input = RulesInput { apps: vec![app], guarded, templates, ..RulesInput::default() };
    let mut entropy = Entropy::default();
    let key = crate::domains::HashKey(entropy.draw(), entropy.draw());
    let compiled = snapshot::build_rules(input, key, &mut ascii_by(to_ascii), &mut data_by(to_data)).map_err(bad)?;
    report(py, &compiled.reports[0][0])
}

/// Every name that a list gives, as the compiler reads it, in its order; and how many of its rules are about no name, by
/// what they are. OSError when it cannot be read.
#[pyfunction]
fn list_names(list: PyList, to_ascii: &Bound<'_, PyAny>) -> PyResult<(Vec<String>, HashMap<&'static str, u64>)> {
    let (list, mut names, mut others) = (list_input(list)?, Vec::new(), HashMap::new());
    let mut each = |says: Says<'_>| match says {
        Says::Rule(Trigger::Below(name), _) if *name == FoldedName::ROOT => {
            *others.entry("everything").or_default() += 1;
        }
        Says::Name(_, name) | Says::Rule(Trigger::Name(name) | Trigger::Below(name), _) => names.push(name.to_string()),
        Says::Rule(Trigger::Answer(..), _) => *others.entry("answers").or_default() += 1,
        Says::Rule(Trigger::Client(..), _) => *others.entry("clients").or_default() += 1,
        Says::Expression(_) => *others.entry("expressions").or_default() += 1,
    };
    lists::each_thing(&list.file, list.format, list.may_be_public, &mut ascii_by(to_ascii), &mut each)?;
    Ok((names, others))
}

fn report<'py>(py: Python<'py>, list: &snapshot::ListReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("format", list.format)?;
    dict.set_item("kept", list.kept)?;
    dict.set_item("skipped", list.skipped.clone())?;
    let samples = |of: &[snapshot::Sample]| -> Vec<_> {
        of.iter().map(|(n, why, text)| (*n, *why, PyBytes::new(py, text))).collect()
    };
    dict.set_item("samples", samples(&list.samples))?;
    dict.set_item("refused", list.refused)?;
    dict.set_item("refused_samples", samples(&list.refused_samples))?;
    Ok(dict)
}

fn read_snapshot(path: &Path) -> io::Result<(crate::decide::Rules, Views, Vec<u8>)> {
    let file = File::open(path)?;
    let octets = file.metadata()?.len();
    snapshot::decode(file, octets)
}

/// A snapshot file, read and checked.
#[pyclass(frozen, module = "blockd.fastpath._native")]
struct Snapshot {
    rules: Arc<crate::decide::Rules>,
    views: Views,
    meta: Vec<u8>,
}

#[pymethods]
impl Snapshot {
    /// What Python kept with it.
    #[getter]
    fn meta<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.meta)
    }
}

/// Reads a snapshot file. OSError when it cannot be read, ValueError when it is not whole.
#[pyfunction]
fn load(py: Python<'_>, path: &str) -> PyResult<Snapshot> {
    crate::sockets::keep_no_large_blocks();
    let (rules, views, meta) = py.detach(|| read_snapshot(Path::new(path))).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => bad(format!("{path}: {error}")),
        _ => io_error(path, &error),
    })?;
    Ok(Snapshot { rules: Arc::new(rules), views, meta })
}

/// The running hot path.
#[pyclass(frozen, module = "blockd.fastpath._native")]
struct Fastpath {
    core: Arc<Core>,
    listeners: Mutex<Option<Listeners>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lane: usize,
    source_sockets: usize,
}

fn io_error(what: &str, error: &io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error(), format!("{what}: {error}")))
}

/// What a rule of a response policy zone does: `(word,)`, `("alias", name, is_prefixed, TTL)` or
/// `("records", [(type, TTL, data on the wire)])`; None for a passthru.
fn zone_act<'py>(py: Python<'py>, rules: &crate::decide::Rules, act: u16) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(act) = rules.chain.as_deref().and_then(|chain| chain.acts.get(usize::from(act))) else { return Ok(None) };
    let said = match act {
        Act::Pass => return Ok(None),
        Act::TcpOnly => ("tcp-only",).into_pyobject(py)?.into_any(),
        Act::Alias(target, is_prefixed, ttl) => {
            ("alias", target.to_string(), *is_prefixed, *ttl).into_pyobject(py)?.into_any()
        }
        Act::Template(template) => {
            let template = &rules.templates[usize::from(*template)];
            let records = chain::local_records(template);
            match () {
                () if template.is_silent => ("drop",).into_pyobject(py)?.into_any(),
                () if !records.is_empty() => {
                    let records = records.into_iter().map(|(kind, ttl, data)| (kind, ttl, PyBytes::new(py, &data)));
                    ("records", records.collect::<Vec<_>>()).into_pyobject(py)?.into_any()
                }
                () if template.rcode == rcode::NXDOMAIN => ("nxdomain",).into_pyobject(py)?.into_any(),
                () => ("nodata",).into_pyobject(py)?.into_any(),
            }
        }
    };
    Ok(Some(said))
}

#[pymethods]
impl Fastpath {
    /// Opens the sockets and puts the snapshot in force; `start` begins to answer.
    ///
    /// `inherited` are bound UDP sockets that a supervisor opened, grouped by address. `source_sockets` is the number of
    /// sockets of a family that each thread asks upstreams from.
    #[new]
    #[pyo3(signature = (snapshot, listen, threads, cache_octets, inherited=vec![], source_sockets=256))]
    fn new(
        snapshot: &Snapshot,
        listen: Vec<(IpAddr, u16)>,
        threads: usize,
        cache_octets: usize,
        inherited: Vec<Vec<i32>>,
        source_sockets: usize,
    ) -> PyResult<Self> {
        let core = Core::new(threads, cache_octets, Arc::clone(&snapshot.rules), snapshot.views.clone())
            .map_err(|error| io_error("eventfd", &error))?;
        let addresses: Vec<SocketAddr> = listen.into_iter().map(SocketAddr::from).collect();
        let mut listeners = Listeners::open(&addresses, threads)
            .map_err(|(address, error)| io_error(&format!("{address} (UDP)"), &error))?;
        for sockets in inherited {
            listeners.adopt(&sockets).map_err(|error| io_error("a socket of the supervisor", &error))?;
        }
        Ok(Self {
            core: Arc::new(core),
            listeners: Mutex::new(Some(listeners)),
            threads: Mutex::default(),
            lane: threads,
            source_sockets,
        })
    }

    /// Starts the serve threads. From here on a panic outside the guarded parsers ends the process.
    fn start(&self) -> PyResult<()> {
        let listeners = lock(&self.listeners).take();
        let listeners = listeners.ok_or_else(|| PyRuntimeError::new_err("the hot path was started before"))?;
        abort_on_unguarded_panic();
        let threads =
            listeners.serve(&self.core, self.source_sockets).map_err(|error| io_error("a serve thread", &error))?;
        *lock(&self.threads) = threads;
        Ok(())
    }

    /// Reads no more from clients; `sizes()["pending.waiters"]` says when what was read is answered.
    fn drain(&self) {
        self.core.drain();
    }

    /// Ends the serve threads and closes their sockets.
    fn stop(&self, py: Python<'_>) {
        self.core.is_stopping.store(true, Relaxed);
        for inbox in &self.core.inboxes {
            inbox.bell.ring();
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        py.detach(|| threads.into_iter().for_each(|thread| drop(thread.join())));
    }

    /// Readable when there is work to take.
    #[getter]
    fn work_fd(&self) -> i32 {
        self.core.work_bell.fd()
    }

    /// Puts a snapshot in force for every query received after this returns; gives the generations of rules and views.
    ///
    /// Folded into it, as things are now: views behind its own, each the number of one and the apps that are exempt; slots,
    /// numbered behind all views, each the views that it gives from a time on, in seconds since 1970, the first from 0;
    /// addresses with a view or slot of their own; the latest time that is known to have been; forwarders whose word about
    /// others is believed, how many queries a second one may bring, and MACs with a view or slot, for what they convey.
    /// ValueError, and nothing is changed, when numbers do not fit.
    #[pyo3(signature = (
        snapshot, views=vec![], slots=vec![], devices=vec![], floor=0.0, forwarders=vec![], forwarder_rate=0, macs=vec![]
    ))]
    fn publish(
        &self,
        snapshot: &Snapshot,
        views: Vec<(u16, AppMask)>,
        slots: Vec<Vec<(f64, u16)>>,
        devices: Vec<(IpAddr, u16)>,
        floor: f64,
        forwarders: Vec<(IpAddr, u8)>,
        forwarder_rate: u32,
        macs: Vec<(u64, u16)>,
    ) -> PyResult<(u64, u64)> {
        let ms = |seconds: f64| (seconds * 1000.0).ceil() as u64;
        let slot = |slot: Vec<(f64, u16)>| Slot::new(slot.into_iter().map(|(from, view)| (ms(from), view)).collect());
        let folded = Folded {
            views,
            slots: slots.into_iter().map(slot).collect::<Result<_, _>>().map_err(bad)?,
            devices: devices.into_iter().map(|(address, own)| (Address::from(address), Some(own))).collect(),
            floor_ms: ms(floor),
            forwarders: forwarders.into_iter().map(|(address, kinds)| (address.into(), kinds)).collect(),
            forwarder_rate,
            macs,
        };
        self.core.publish(Arc::clone(&snapshot.rules), snapshot.views.clone(), folded).map_err(bad)
    }

    /// The time by which exemptions begin and end: seconds since 1970, never less than before.
    fn wall(&self) -> f64 {
        self.core.wall.now_ms() as f64 / 1000.0
    }

    /// Gives memory that nobody uses back to the system; a call for after a reload, from any thread.
    fn give_back_memory(&self, py: Python<'_>) {
        py.detach(crate::sockets::give_back_memory);
    }

    /// Gives addresses other views than their prefixes do, from the next query on; None takes one back. It holds until the
    /// next publish. ValueError, and nothing is changed, when the generation is no longer in force, a view does not exist,
    /// or there would be more than 1,048,576 addresses.
    fn set_devices(&self, generation: u64, changes: Vec<(IpAddr, Option<u16>)>) -> PyResult<()> {
        let changes: Vec<_> = changes.into_iter().map(|(address, view)| (Address::from(address), view)).collect();
        self.core.set_devices(generation, &changes).map_err(bad)
    }

    /// Orders the servers of each route by these ranks, the lowest first; servers that are not named have rank 0.
    fn set_order(&self, ranks: HashMap<PyEndpoint, u32>) -> PyResult<()> {
        let ranks = ranks.into_iter().map(|(server, rank)| Ok((endpoint(server)?, rank))).collect::<PyResult<_>>()?;
        self.core.set_order(&ranks);
        Ok(())
    }

    /// Answers a query that came by a stream: the reply, `b""` for silence, or None when it comes from `take_work`.
    /// `proxied` is what a PROXY header said before the stream: whom it is for, None for one that speaks for itself.
    #[pyo3(signature = (packet, peer, token, proxied=None))]
    fn answer<'py>(
        &self,
        py: Python<'py>,
        packet: &[u8],
        peer: (IpAddr, u16),
        token: u64,
        proxied: Option<(Option<IpAddr>,)>,
    ) -> Option<Bound<'py, PyBytes>> {
        let mut out = Vec::new();
        let outcome = py.detach(|| {
            let arrival = Arrival {
                lane: self.lane,
                identity: Identity::from(SocketAddr::from(peer)),
                origin: &|| Origin::Stream(token),
                is_stream: true,
                is_overloaded: false,
            };
            let mut name = FoldedName::ROOT;
            let proxied = proxied.map(|(address,)| address.map(Address::from));
            let asked = self.core.read_behind(proxied, packet, &mut name);
            let outcome = self.core.answer(&self.core.pair.load(), &arrival, &asked, self.core.now_us(), &mut out);
            if let Outcome::Ask(key, serial) = outcome {
                self.core.ask_elsewhere(Command::Ask(key, serial));
                return Outcome::Waiting;
            }
            outcome
        });
        match outcome {
            Outcome::Reply => Some(PyBytes::new(py, &out)),
            Outcome::Silence => Some(PyBytes::new(py, &[])),
            Outcome::Waiting | Outcome::Ask(..) => None,
        }
    }

    /// Whether an address may ask at all.
    fn is_client(&self, client: IpAddr) -> bool {
        let pair = self.core.pair.load();
        pair.views.views.clients.find(Address::from(client)) != PrefixTable::NONE
    }

    /// Work for Python: `("reply", token, bytes | None)` or `("stream", exchange, [(server, query)], seconds)`.
    fn take_work(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let tuple = |work| -> PyResult<Py<PyAny>> {
            Ok(match work {
                Work::Log(row) => {
                    let dict = PyDict::new(py);
                    dict.set_item("client", client_text(&row.kind))?;
                    dict.set_item("generation", row.kind.generation)?;
                    dict.set_item("view", row.kind.view)?;
                    dict.set_item("app", row.kind.app)?;
                    dict.set_item("action", crate::decide::Action::NAMES[usize::from(row.kind.action)])?;
                    dict.set_item("name", &*row.name)?;
                    dict.set_item("qtype", row.qtype)?;
                    dict.set_item("rule", &*row.rule)?;
                    dict.set_item("more", row.more)?;
                    ("log", dict).into_pyobject(py)?.into_any().unbind()
                }
                Work::Learned(learned) => {
                    let addresses: Vec<IpAddr> = learned.addresses.into_iter().map(IpAddr::from).collect();
                    let name = learned.name.to_string();
                    ("learned", learned.serial, learned.generation, name, learned.apps, addresses, learned.seconds)
                        .into_pyobject(py)?
                        .into_any()
                        .unbind()
                }
                Work::Reply { token, reply } => {
                    let reply = reply.map(|r| PyBytes::new(py, &r));
                    ("reply", token, reply).into_pyobject(py)?.into_any().unbind()
                }
                Work::Stream { exchange, servers, patience_ms } => {
                    let servers: Vec<_> = servers
                        .iter()
                        .map(|(server, query)| (endpoint_fields(&server.endpoint), PyBytes::new(py, query)))
                        .collect();
                    ("stream", exchange, servers, patience_ms as f64 / 1000.0).into_pyobject(py)?.into_any().unbind()
                }
            })
        };
        self.core.take_work(WORK_AT_ONCE).into_iter().map(tuple).collect()
    }

    /// What came of a stream exchange: the answer and which of its servers gave it, or None when there is none. False
    /// when it is of no use and another server may be asked; a query that the same server is to be asked; None is always
    /// the end.
    #[pyo3(signature = (exchange, server, wire))]
    fn complete<'py>(
        &self,
        py: Python<'py>,
        exchange: u64,
        server: usize,
        wire: Option<&[u8]>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let streamed = py.detach(|| {
            let mut replies = Outbound::default();
            let streamed = self.core.complete(self.lane, exchange, server, wire, &mut replies);
            self.core.send_late(self.lane, &mut replies);
            streamed
        });
        Ok(match streamed {
            Streamed::Done => true.into_pyobject(py)?.to_owned().into_any(),
            Streamed::Next => false.into_pyobject(py)?.to_owned().into_any(),
            Streamed::Again(query) => PyBytes::new(py, &query).into_any(),
        })
    }

    /// From now on addresses of answers are told, and answers of apps held until they are let go, so many milliseconds at
    /// most.
    fn learn(&self, wait_ms: u64) {
        self.core.learner.wait_ms.store(wait_ms, Relaxed);
        self.core.learner.is_on.store(true, Relaxed);
    }

    /// Lets answers go that were held.
    fn let_go(&self, py: Python<'_>, serials: Vec<u64>) {
        py.detach(|| {
            let mut replies = Outbound::default();
            self.core.let_go(self.lane, &serials, &mut replies);
            self.core.send_late(self.lane, &mut replies);
        });
    }

    /// Whether an address, or its /64, asked within so many seconds.
    fn asked_within(&self, address: IpAddr, seconds: u32) -> bool {
        self.core.asked_within(address.into(), u64::from(seconds) * 1_000_000)
    }

    /// Asks an upstream for a name that nobody asks for. ValueError when it is none.
    fn look_up(&self, name: &str, qtype: u16) -> PyResult<()> {
        self.core.look_up(&rule_name(name)?, qtype);
        Ok(())
    }

    /// Looks through these NAT64 prefixes from now on, beside those of the snapshot. ValueError when one is none.
    fn set_nat64(&self, prefixes: Vec<Network>) -> PyResult<()> {
        self.core.set_nat64(prefixes.into_iter().map(nat64_prefix).collect::<PyResult<_>>()?);
        Ok(())
    }

    /// Asks a server something harmless, so that its counters say whether it lives.
    fn probe(&self, server: PyEndpoint) -> PyResult<()> {
        let server = self.core.server(&endpoint(server)?);
        self.core.ask_elsewhere(Command::Probe(server));
        Ok(())
    }

    /// What would be done with a question, and why; counts nothing and asks nobody.
    ///
    /// With `answer`, as if the upstream had said that; ValueError when it is no answer to the question.
    /// With `view`, as for a device of that view, whatever the address is.
    #[pyo3(signature = (client, name, qtype, answer=None, view=None))]
    fn decide<'py>(
        &self,
        py: Python<'py>,
        client: IpAddr,
        name: &str,
        qtype: u16,
        answer: Option<&[u8]>,
        view: Option<u16>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let name = presented_name(name)?;
        let judged =
            self.core.explain(client, view, &name, qtype, answer).map_err(|problem| bad(format!("{problem:?}")))?;
        let dict = PyDict::new(py);
        let rule = |app: Option<u8>, of: &FoldedName| {
            let place = app.and_then(|app| judged.pair.rules.deciding_rule(of, app));
            place.map(|place| (place.kind, place.rule))
        };
        dict.set_item("view", judged.view)?;
        dict.set_item("asked", judged.meaning.asked.0)?;
        dict.set_item("found", judged.meaning.found.0)?;
        dict.set_item("action", crate::decide::Action::NAMES[judged.verdict.action as usize])?;
        dict.set_item("app", judged.verdict.app)?;
        dict.set_item("touched", judged.verdict.touched.0)?;
        dict.set_item("is_cached", judged.targets.is_some())?;
        dict.set_item("rule", rule(judged.verdict.app, &name))?;
        let targets = judged.targets.unwrap_or_default();
        // A target counts where it gives the app; one that a hole takes out of it explains nothing.
        let rules = &judged.pair.rules;
        let bit = judged.verdict.app.map_or(AppMask::EMPTY, |app| AppMask::of(app.into()));
        let target = targets.names().into_iter().find(|t| !rules.find(t).apps.and(bit).is_empty());
        let target = target.and_then(|t| rule(judged.verdict.app, &t).map(|r| (t.to_string(), r)));
        dict.set_item("target_rule", target)?;
        let addresses = targets.addresses().into_iter().filter(|&a| !rules.apps_at(a).and(bit).is_empty());
        let addresses: Vec<String> = addresses.map(|a| IpAddr::from(a).to_string()).collect();
        dict.set_item("target_addresses", addresses)?;
        dict.set_item("is_client", judged.is_client)?;
        dict.set_item("zone", judged.zone)?;
        dict.set_item("reply", judged.reply.map(|r| PyBytes::new(py, &r)))?;
        Ok(dict)
    }

    /// What policy says of each name by itself, for a view: None is nothing, a number the bit of the app that blocks it, a
    /// tuple what a response policy zone's rule does. A text that is no name is open.
    fn policy_of<'py>(
        &self,
        py: Python<'py>,
        names: Vec<String>,
        view: u16,
    ) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
        let pair = self.core.pair.load_full();
        if usize::from(view) >= pair.views.views.views.len() {
            return Err(bad("there is no such view"));
        }
        let mut known: HashMap<Policy, Option<Bound<'py, PyAny>>> = HashMap::new();
        let each = |text: String| {
            let policy = rule_name(&text).map_or(Policy::Open, |name| self.core.policy_of(&pair, view, &name));
            if let Some(said) = known.get(&policy) {
                return Ok(said.clone());
            }
            let said = match policy {
                Policy::Open => None,
                Policy::Block(app) => Some(app.into_pyobject(py)?.into_any()),
                Policy::Act(act) => zone_act(py, &pair.rules, act)?,
            };
            known.insert(policy, said.clone());
            Ok(said)
        };
        names.into_iter().map(each).collect()
    }

    /// Every native counter by name.
    fn counters(&self) -> HashMap<&'static str, u64> {
        self.core.counters()
    }

    /// Sizes now, by name.
    fn sizes(&self) -> HashMap<&'static str, u64> {
        self.core.sizes()
    }

    /// How long answers took by `hit` and `miss`: answers by bucket, seconds of all. Bounds are `LATENCY_BOUNDS`, seconds;
    /// the last bucket is for what took longer.
    fn latencies(&self) -> HashMap<&'static str, (Vec<u64>, f64)> {
        [("hit", Took::Hit), ("miss", Took::Miss)]
            .map(|(name, took)| {
                let mut cells = self.core.latencies(took);
                let sum_us = cells.pop().unwrap_or(0);
                (name, (cells, sum_us as f64 / 1e6))
            })
            .into()
    }

    /// Decisions since the start of each set of views that was in force and is not folded yet:
    /// `(generation, is_final, [(view, app bit | None, action, count)])`. A final one is not given again.
    fn decisions(&self) -> Vec<(u64, bool, Vec<DecisionCount>)> {
        self.core.read_decisions()
    }

    /// Each upstream server and how it does.
    fn servers<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let now_ms = self.core.now_us() / 1000;
        self.core
            .all_servers()
            .into_iter()
            .map(|server| {
                let dict = PyDict::new(py);
                dict.set_item("endpoint", endpoint_fields(&server.endpoint))?;
                dict.set_item("sent", server.sent.load(Relaxed))?;
                dict.set_item("answered", server.answered.load(Relaxed))?;
                dict.set_item("timed_out", server.timed_out.load(Relaxed))?;
                dict.set_item("failed", server.failed.load(Relaxed))?;
                dict.set_item("silent_in_a_row", server.silent_in_a_row.load(Relaxed))?;
                dict.set_item("waited_us", server.waited_us.load(Relaxed))?;
                dict.set_item("not_sent", server.not_sent.load(Relaxed))?;
                dict.set_item("send_error", server.send_error.load(Relaxed))?;
                dict.set_item("has_edns", !server.edns.is_plain(now_ms))?;
                Ok(dict)
            })
            .collect()
    }

    /// Addresses whose queries were among the one of 64 that are looked at, since the last call: how many queries they
    /// asked, about, and for how many names.
    fn busy(&self) -> Vec<(IpAddr, u64, f64)> {
        let taken = self.core.busy.take().into_iter();
        taken.map(|(address, queries, names)| (address.into(), u64::from(queries) * ONE_OF, names)).collect()
    }

    /// Turns of each serve thread's loop.
    fn beats(&self) -> Vec<u64> {
        self.core.inboxes.iter().map(|inbox| inbox.beats.load(Relaxed)).collect()
    }
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        Fastpath, Snapshot, check_patterns, compile_rules, end_with_parent, fold_rule_name, is_public_suffix, line_of,
        list_changes, list_names, load, proxy_header, read_list, read_presentation,
    };
    #[pymodule_export]
    use super::{interface_index, own_addresses};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("LATENCY_BOUNDS", super::LATENCY_BOUNDS_US.map(|us| us as f64 / 1e6))
    }
}
