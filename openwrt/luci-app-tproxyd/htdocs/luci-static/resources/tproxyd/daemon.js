'use strict';
'require baseclass';
'require fs';
'require rpc';
'require uci';
'require tproxyd.model as model';

/*
 * Everything that is asked of the router. Quick questions go to the ubus object `tproxyd`; what takes seconds is run by
 * file.exec, because rpcd answers one call after the other. Each command stands word for word in the ACL.
 */

const PROGRAM = '/usr/sbin/tproxyd';
const SERVICE = '/etc/init.d/tproxyd';
const CONFIG = '/etc/config/tproxyd';
const UPDATE_SETS = '/usr/libexec/tproxyd/update-sets';

// The configuration as it is in the browser, put there by the method `validate`.
const CANDIDATE = '/var/run/tproxyd.candidate';

// A status is asked for at most this often, in seconds.
const PERIOD = 3;

const callStatus = rpc.declare({ object: 'tproxyd', method: 'status' });
const callSessions = rpc.declare({
	object: 'tproxyd', method: 'sessions', params: [ 'client', 'outbound', 'dst', 'offset', 'limit' ]
});
const callClients = rpc.declare({ object: 'tproxyd', method: 'clients' });
const callKick = rpc.declare({ object: 'tproxyd', method: 'kick', params: [ 'id', 'client' ] });
const callValidate = rpc.declare({ object: 'tproxyd', method: 'validate', params: [ 'config' ] });
const callExplain = rpc.declare({
	object: 'tproxyd', method: 'explain', params: [ 'proto', 'src', 'dst', 'mac', 'device', 'domain' ]
});
const callService = rpc.declare({ object: 'service', method: 'list', params: [ 'name' ] });
const callNetworks = rpc.declare({ object: 'network.interface', method: 'dump', expect: { interface: [] } });
const callLeases = rpc.declare({ object: 'luci-rpc', method: 'getDHCPLeases' });
const callHints = rpc.declare({ object: 'luci-rpc', method: 'getHostHints' });

// An answer, or { error } in words: a page shows why it has nothing to show.
function told(call) {
	return call.then(
		(answer) => (answer && typeof(answer) === 'object') ? answer : { error: _('The router gave no answer (%s).').format(answer) },
		(error) => ({ error: error.message ?? String(error) }));
}

function run(command, words) {
	return fs.exec(command, words).then(
		(result) => ({ code: result.code ?? 0, text: result.stdout ?? '', error: result.stderr ?? '' }),
		(error) => ({ code: -1, text: '', error: error.message ?? String(error) }));
}

// Members that were not given are left out: rpcd refuses what it does not expect.
function given(value) {
	return (value == null || value === '') ? undefined : value;
}

// The router's networks: [ { name, device, up, wan } ]; one that leads to the rest of the world is `wan`.
function networks() {
	return callNetworks().then((all) => all
		.filter((one) => one.interface !== 'loopback')
		.map((one) => ({
			name: one.interface,
			device: one.l3_device ?? one.device ?? '',
			up: one.up === true,
			wan: (one.route ?? []).some((route) => route.mask === 0)
		})), () => []);
}

// What people call their devices, by MAC and by address, from DHCP leases and what the router has seen.
function hostNames() {
	return Promise.all([ L.resolveDefault(callLeases(), {}), L.resolveDefault(callHints(), {}) ]).then(([ leases, hints ]) => {
		const names = { byMac: {}, byAddress: {}, leases: [] };

		for (const mac in hints)
			for (const address of [ ...(hints[mac].ipaddrs ?? []), ...(hints[mac].ip6addrs ?? []) ])
				names.byAddress[address] = { mac: mac.toLowerCase(), name: hints[mac].name ?? '' };

		for (const lease of [ ...(leases.dhcp_leases ?? []), ...(leases.dhcp6_leases ?? []) ]) {
			const mac = (lease.macaddr ?? '').toLowerCase();
			const address = lease.ipaddr ?? lease.ip6addr ?? '';
			const known = { mac: mac, name: lease.hostname ?? hints[mac.toUpperCase()]?.name ?? '', address: address };

			names.byAddress[address] = known;

			if (mac) {
				names.byMac[mac] = known;
				names.leases.push(known);
			}
		}

		return names;
	});
}

/*
 * What the daemon says of these sections, which need not be saved: [ { section, option, text } ], none if it is content.
 * `severity` is fail or warn.
 */
function judge(sections) {
	const draft = model.exportText(sections);

	return told(callValidate(draft.text)).then((answer) => {
		if (answer.error)
			return model.complaints(answer.error, draft.places).map((one) => ({ ...one, severity: 'fail' }));

		return (answer.findings ?? [])
			.filter((finding) => finding.severity !== 'ok')
			.flatMap((finding) => model.complaints(finding.text, draft.places)
				.map((one) => ({ ...one, severity: finding.severity, mend: finding.mend })));
	});
}

// Findings of `tproxyd check`; [ { severity, text, mend } ], its complaint being one of them.
function findings(words) {
	return run(PROGRAM, [ 'check', '--json', ...words ]).then((result) => {
		try {
			return JSON.parse(result.text);
		}
		catch (e) {
			return [ { severity: 'fail', text: (result.error || result.text || _('The check said nothing.')).trim() } ];
		}
	});
}

return baseclass.extend({
	PERIOD: PERIOD,

	status: () => told(callStatus()),
	clients: () => told(callClients()),
	sessions: (filter, offset, limit) => told(
		callSessions(given(filter.client), given(filter.outbound), given(filter.dst), offset, limit)),
	kickSession: (id) => told(callKick(id, undefined)),
	kickClient: (address) => told(callKick(undefined, address)),
	explain: (flow) => told(callExplain(
		flow.proto, flow.src, flow.dst, given(flow.mac), given(flow.device), given(flow.domain))),

	// Whether procd runs it: true, false, or null if that can't be known.
	isRunning: () => callService('tproxyd').then(
		(all) => Object.values(all?.tproxyd?.instances ?? {}).some((instance) => instance.running), () => null),

	networks: networks,
	hostNames: hostNames,
	judge: judge,
	sections: () => uci.sections('tproxyd'),

	check: (probe) => findings(probe ? [ '--probe' ] : []),

	// The same for what is not yet saved.
	checkDraft: (sections) => callValidate(model.exportText(sections).text)
		.then(() => findings([ '--config', CANDIDATE ])),

	updateSets: () => run(UPDATE_SETS, [ '--config', CONFIG ]),
	log: () => run('/sbin/logread', [ '-e', 'tproxyd' ]),

	startsAtBoot: () => run(SERVICE, [ 'enabled' ]).then((result) => (result.code < 0) ? null : result.code === 0),
	startAtBoot: (yes) => run(SERVICE, [ yes ? 'enable' : 'disable' ]),
	restart: () => run(SERVICE, [ 'restart' ])
});
