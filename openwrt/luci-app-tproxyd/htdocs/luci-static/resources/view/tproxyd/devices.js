'use strict';
'require view';
'require uci';
'require ui';
'require tproxyd.daemon as daemon';
'require tproxyd.model as model';
'require tproxyd.parts as parts';

// Carried by a rule that this page made, with the device's MAC; the daemon leaves such names alone.
const OWN = '_device';

function ownRule(mac) {
	return uci.sections('tproxyd', 'rule').find((rule) => rule[OWN] === mac);
}

// One click: a rule on top for this device alone, changed, or taken away again.
function send(mac, name, outbound) {
	const rule = ownRule(mac);

	if (!outbound) {
		if (rule)
			uci.remove('tproxyd', rule['.name']);
	}
	else {
		const sid = rule?.['.name'] ?? uci.add('tproxyd', 'rule');
		const first = uci.sections('tproxyd', 'rule').find((one) => one['.name'] !== sid);

		uci.set('tproxyd', sid, 'name', name);
		uci.set('tproxyd', sid, 'src_mac', [ mac ]);
		uci.set('tproxyd', sid, 'outbound', outbound);
		uci.set('tproxyd', sid, OWN, mac);

		if (!rule && first)
			uci.move('tproxyd', sid, first['.name']);
	}

	return uci.save().then(() => ui.changes.apply(true));
}

// Clients that the daemon counted, and devices that have an address but have sent nothing.
function merge(clients, hosts) {
	const all = {};

	for (const lease of hosts.leases)
		all[lease.mac] = { mac: lease.mac, name: lease.name, address: lease.address };

	for (const client of clients) {
		const address = client.client;
		const known = hosts.byAddress[address] ?? {};
		const mac = (client.mac ?? known.mac ?? '').toLowerCase();
		const key = mac || address;
		const one = all[key] ??= { mac: mac, name: hosts.byMac[mac]?.name ?? known.name ?? '', address: address };

		one.up = (one.up ?? 0) + client.bytes_up;
		one.down = (one.down ?? 0) + client.bytes_down;
		one.sessions = (one.sessions ?? 0) + client.sessions;
	}

	return Object.values(all).sort((a, b) => (b.up ?? 0) + (b.down ?? 0) - (a.up ?? 0) - (a.down ?? 0));
}

return view.extend({
	handleSave: null,
	handleSaveApply: null,
	handleReset: null,

	load: () => Promise.all([ daemon.hostNames(), uci.load('tproxyd') ]),

	render([ hosts ]) {
		const readonly = !L.hasViewPermission();
		const body = E('div', { 'class': 'tproxyd-scroll', 'id': 'tproxyd-devices' }, [ '' ]);
		const told = E('p', { 'role': 'status' }, [ '' ]);

		const choice = (device) => {
			const ways = [ [ '', _('as the rules say') ], [ 'direct', _('direct') ], [ 'reject', _('blocked') ],
				...uci.sections('tproxyd', 'outbound').map((one) => [ one['.name'], _('by %s').format(one['.name']) ]) ];
			const name = device.name || device.address || device.mac;

			if (!device.mac)
				return E('em', {}, [ _('no MAC address known') ]);

			return parts.select('device-' + device.mac, ways, ownRule(device.mac)?.outbound ?? '', {
				'aria-label': _('Where the traffic of %s goes').format(name),
				'disabled': readonly ? '' : null,
				'change': (ev) => send(device.mac, name, ev.target.value)
			});
		};

		const titles = [ _('Device'), _('Address'), _('MAC address'), _('Sessions'), _('Up'), _('Down'), _('Goes') ];

		const refresh = parts.watch(daemon.clients, (answer) => {
			parts.replace(told, answer.error ?? '');

			if (body.contains(document.activeElement))
				return;

			parts.replace(body, parts.table(titles, merge(answer.clients ?? [], hosts).map((device) => [
				E('strong', {}, [ device.name || '–' ]), device.address, device.mac || '–',
				(device.sessions == null) ? '–' : String(device.sessions),
				(device.up == null) ? '–' : model.bytes(device.up), (device.down == null) ? '–' : model.bytes(device.down), choice(device)
			]), _('No device has been seen yet.')));
		});

		refresh();

		return E('div', {}, [
			parts.style(),
			parts.text('h2', _('Devices')),
			parts.text('p', _('A choice here is a rule above all others for that device, and is applied at once; sessions that run go on.')),
			body, told
		]);
	}
});
