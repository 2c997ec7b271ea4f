'use strict';
'require view';
'require uci';
'require ui';
'require tproxyd.daemon as daemon';
'require tproxyd.fields as fields';
'require tproxyd.model as model';
'require tproxyd.parts as parts';
'require tproxyd.presets as presets';

function isEnabled() {
	const globals = model.globals(daemon.sections());

	return globals != null && model.isOn(globals.enabled, '1');
}

// With nothing configured there is no way out but direct, and it is off.
function isFresh() {
	return !isEnabled() && !uci.sections('tproxyd', 'outbound').length;
}

function saveAndApply() {
	return uci.save().then(() => ui.changes.apply(true));
}

function switchTo(on) {
	uci.set('tproxyd', presets.globals(), 'enabled', on ? '1' : '0');

	return saveAndApply();
}

// Why nothing runs: what `check` finds, or that it was never asked to run.
function showReasons(place, status) {
	if (!isEnabled())
		return parts.replace(place, parts.text('p', _('It is switched off. Traffic flows as if it were not installed.')));

	return daemon.check(false).then((findings) => {
		const faults = findings.filter((one) => one.severity === 'fail');

		parts.replace(place, parts.text('p', status.error), faults.length
			? parts.findingList(faults) : parts.text('p', _('The log may say why: see “Check & Log”.')));
	});
}

function stateCard() {
	const state = E('p', { 'class': 'tproxyd-big', 'id': 'tproxyd-state' }, [ '…' ]);
	const since = E('p', {}, [ '' ]);
	const reasons = E('div', {}, [ '' ]);
	const boot = E('p', {}, [ '' ]);
	const readonly = !L.hasViewPermission();
	let explained = false;

	const showBoot = () => daemon.startsAtBoot().then((yes) => parts.replace(boot, ...(yes == null ? [] : [
		yes ? _('Starts with the router.') : _('Does not start with the router.'), ' ',
		parts.button(yes ? _('Don’t start at boot') : _('Start at boot'), 'neutral',
			() => daemon.startAtBoot(!yes).then(showBoot), { 'disabled': readonly ? '' : null })
	])));

	const show = (status) => {
		parts.replace(state, status.error
			? parts.badge(isEnabled() ? 'fail' : '', _('not running'))
			: parts.badge('ok', _('running')));
		parts.replace(since, status.error ? '' : _('Version %s, for %s').format(status.version, model.duration(status.uptime_s)));

		if (!status.error) {
			explained = false;
			parts.replace(reasons);
		}
		else if (!explained) {
			explained = true;
			showReasons(reasons, status);
		}
	};

	showBoot();

	return {
		show: show,
		node: parts.card(_('State'), state, since, reasons,
			parts.button(isEnabled() ? _('Switch off') : _('Switch on'), isEnabled() ? 'negative' : 'positive',
				() => switchTo(!isEnabled()), { 'id': 'tproxyd-switch', 'disabled': readonly ? '' : null }), boot)
	};
}

function showWays(place, status) {
	const taken = Object.fromEntries((status.listeners ?? []).map((one) => [ one.name, one ]));

	parts.replace(place, ...uci.sections('tproxyd', 'listener').map((one) => parts.text('p', '%s: %s, %s → %s'.format(
		fields.called(one), [ ...model.values(one.network), ...model.values(one.device) ].join(', ') || '–', one.mode ?? 'tproxy',
		taken[one['.name']] ? _('%d packets caught, %d arrived').format(taken[one['.name']].packets ?? 0, taken[one['.name']].accepted)
			: _('not loaded')))),
	parts.text('p', _('What no rule matches goes to: %s').format(model.globals(daemon.sections())?.default ?? 'direct')));
}

function outboundRows(status) {
	return (status.outbounds ?? []).map((one) => [
		E('strong', {}, [ one.name ]), one.type,
		parts.badge({ up: 'ok', down: 'fail' }[one.state] ?? '', { up: _('up'), down: _('down') }[one.state] ?? _('not tried yet')),
		(one.latency_ms == null) ? '–' : _('%d ms').format(one.latency_ms), String(one.sessions),
		model.bytes(one.bytes_up), model.bytes(one.bytes_down), one.last_error ? '%d: %s'.format(one.errors, one.last_error.text) : String(one.errors)
	]);
}

function showTables(place, status) {
	const rows = [ [ _('TCP sessions'), status.tcp?.active, status.tcp?.limit, String ], [ _('UDP flows'), status.udp?.active, status.udp?.limit, String ],
		[ _('Memory'), status.memory?.used, status.memory?.bound, model.bytes ] ];
	const dropped = Object.entries(status.drops ?? {}).filter(([ , count ]) => count > 0);

	parts.replace(place, ...rows.filter(([ , used ]) => used != null).flatMap(([ title, used, most, words ]) => [
		parts.text('p', _('%s: %s of %s').format(title, words(used), words(most))), parts.meter(used, most, title)
	]), ...dropped.map(([ reason, count ]) => parts.text('p', _('Dropped, %s: %d').format(reason, count))));
}

function problemList(status) {
	const problems = status.problems ?? [];

	return problems.length ? E('ul', {}, problems.map((one) => E('li', {}, [
		new Date(1000 * one.time).toLocaleString() + ' ', one.text ])))
		: E('em', {}, [ _('none') ]);
}

function choiceList(kind, name, choices) {
	return E('div', {}, choices.map(([ value, words, checked ]) => E('label', { 'class': 'tproxyd-choice' }, [
		E('input', { 'type': kind, 'name': name, 'value': value, 'checked': checked ? '' : null }), ' ', words
	])));
}

function checkedOf(node, name) {
	return [ ...node.querySelectorAll('input[name="%s"]:checked'.format(name)) ].map((one) => one.value);
}

// Three steps on one page: which networks, which way, try and enable.
function guide(networks, hosts) {
	const inside = networks.filter((one) => !one.wan);
	const text = (name, attributes) => parts.input('guide-' + name, attributes);
	const way = parts.select('guide-way', [
		[ 'direct', _('straight out (to see it work)') ], [ 'socks5', _('a SOCKS5 proxy') ], [ 'http', _('an HTTP proxy') ], [ 'link', _('a link: socks5://, http:// or ss://') ]
	], 'direct');
	const preset = parts.select('guide-preset', Object.entries(presets.PRESETS).map(([ name, one ]) => [ name, one.title() ]), 'everything');
	const inputs = {
		server: text('server', { 'placeholder': 'proxy.example' }), port: text('port', { 'placeholder': '1080', 'inputmode': 'numeric' }),
		username: text('username'), password: text('password', { 'type': 'password' }), link: text('link', { 'placeholder': 'ss://…' }),
		list: text('list', { 'placeholder': 'https://lists.example/country.txt' }), names: text('names', { 'placeholder': 'example.com example.org' }),
		start: text('start', { 'value': '21:30' }), stop: text('stop', { 'value': '06:00' })
	};
	const devices = choiceList('checkbox', 'guide-device', hosts.leases.map((lease) => [ lease.mac, '%s (%s)'.format(lease.name || lease.address, lease.mac) ]));
	const which = choiceList('checkbox', 'guide-network', (inside.length ? inside : [ { name: 'lan' } ]).map((one, place) => [ one.name, one.name, place === 0 ]));
	const proxy = E('div', { 'class': 'tproxyd-fields' }, [ parts.field(_('Server'), inputs.server), parts.field(_('Port'), inputs.port),
		parts.field(_('User name (if any)'), inputs.username), parts.field(_('Password (if any)'), inputs.password) ]);
	const extra = {
		list: parts.field(_('List of the country’s networks'), inputs.list), names: parts.field(_('Names'), inputs.names),
		devices: E('fieldset', {}, [ E('legend', {}, [ _('Devices') ]), devices ]),
		hours: E('div', { 'class': 'tproxyd-fields' }, [ parts.field(_('From'), inputs.start), parts.field(_('Until'), inputs.stop) ])
	};
	const link = parts.field(_('Link'), inputs.link);
	const told = E('div', { 'role': 'status', 'aria-live': 'polite', 'id': 'tproxyd-guide-told' }, [ '' ]);
	const node = E('div', { 'class': 'cbi-section', 'id': 'tproxyd-guide' });

	const arrange = () => {
		proxy.hidden = ![ 'socks5', 'http' ].includes(way.value);
		proxy.style.display = proxy.hidden ? 'none' : '';
		link.hidden = way.value !== 'link';
		link.style.display = link.hidden ? 'none' : '';

		for (const name in extra)
			extra[name].style.display = presets.PRESETS[preset.value].asks.includes(name) ? '' : 'none';
	};

	const given = () => {
		const outbound = (way.value === 'link') ? model.parseLink(inputs.link.value) : { type: way.value };

		if ([ 'socks5', 'http' ].includes(way.value))
			for (const name of [ 'server', 'port', 'username', 'password' ])
				if (inputs[name].value.trim())
					outbound[name] = inputs[name].value.trim();

		return {
			networks: checkedOf(node, 'guide-network'), devices: checkedOf(node, 'guide-device'), outbound: outbound,
			list: inputs.list.value.trim(), names: inputs.names.value.trim(), start: inputs.start.value.trim(), stop: inputs.stop.value.trim()
		};
	};

	// Null, if it can't be taken; why is then on the page.
	const write = () => {
		const lacking = presets.lacks(preset.value, given());

		if (lacking) {
			parts.replace(told, parts.badge('fail', lacking));

			return null;
		}

		presets.apply(preset.value, given());

		return daemon.judge(daemon.sections()).then((complaints) => {
			const faults = complaints.filter((one) => one.severity === 'fail');

			parts.replace(told, faults.length ? parts.findingList(faults) : parts.badge('ok', _('The daemon takes this.')));

			return !faults.length;
		});
	};

	const attempt = () => Promise.resolve(write()).then((good) => {
		if (!good)
			return null;

		parts.replace(told, E('em', {}, [ _('Trying it; this can take some seconds…') ]));

		return daemon.checkDraft(daemon.sections()).then((found) => parts.replace(told, parts.findingList(found)));
	});

	const enable = () => Promise.resolve(write()).then((good) => good ? saveAndApply() : null);

	way.addEventListener('change', arrange);
	preset.addEventListener('change', arrange);
	node.append(
		parts.text('h3', _('Set it up')),
		E('fieldset', {}, [ E('legend', {}, [ _('1. Whose traffic?') ]), which ]),
		E('fieldset', {}, [ E('legend', {}, [ _('2. Which way?') ]), E('div', { 'class': 'tproxyd-fields' }, [
			parts.field(_('Way'), way), parts.field(_('What goes that way'), preset) ]), proxy, link, ...Object.values(extra) ]),
		E('fieldset', {}, [ E('legend', {}, [ _('3. Try it, then enable it') ]),
			parts.button(_('Try it'), 'action', attempt, { 'id': 'tproxyd-try' }), ' ',
			parts.button(_('Enable'), 'positive', enable, { 'id': 'tproxyd-enable' }), told ]));
	arrange();

	return node;
}

return view.extend({
	handleSave: null,
	handleSaveApply: null,
	handleReset: null,

	load: () => Promise.all([ daemon.networks(), daemon.hostNames(), uci.load('tproxyd') ]),

	render([ networks, hosts ]) {
		const state = stateCard();
		const ways = E('div', {}, [ '' ]);
		const tables = E('div', {}, [ '' ]);
		const outbounds = E('div', { 'class': 'tproxyd-scroll' }, [ '' ]);
		const problems = E('div', {}, [ '' ]);
		const throughput = parts.graph();

		const refresh = parts.watch(daemon.status, (status) => {
			state.show(status);
			showWays(ways, status);
			showTables(tables, status);
			parts.replace(outbounds, parts.table(
				[ _('Way out'), _('Type'), _('State'), _('Latency'), _('Sessions'), _('Up'), _('Down'), _('Errors') ],
				outboundRows(status), _('The daemon is not running.')));
			parts.replace(problems, problemList(status));

			if (!status.error)
				throughput.add((status.outbounds ?? []).reduce((sum, one) => sum + one.bytes_up, 0),
					(status.outbounds ?? []).reduce((sum, one) => sum + one.bytes_down, 0), Date.now());
		});

		refresh();

		const set = guide(networks, hosts);

		return E('div', {}, [
			parts.style(),
			parts.text('h2', _('Transparent proxy')),
			isFresh() ? set : '',
			E('div', { 'class': 'tproxyd-cards' }, [
				state.node, parts.card(_('What is intercepted'), ways), parts.card(_('Limits'), tables)
			]),
			parts.card(_('Throughput'), throughput.node),
			parts.text('h3', _('Ways out')), outbounds,
			parts.text('h3', _('Last problems')), problems,
			isFresh() ? '' : E('details', {}, [ E('summary', {}, [ _('Choose a preset') ]), set ])
		]);
	}
});
