'use strict';
'require view';
'require form';
'require uci';
'require ui';
'require tproxyd.daemon as daemon';
'require tproxyd.fields as fields';
'require tproxyd.model as model';
'require tproxyd.parts as parts';

const PROXIES = [ 'socks5', 'http', 'shadowsocks' ];
const SERVED = [ 'forward', ...PROXIES ];
const DIALLED = [ 'direct', ...SERVED ];

const TYPES = {
	socks5: () => _('SOCKS5 proxy'),
	http: () => _('HTTP proxy'),
	shadowsocks: () => _('Shadowsocks server'),
	forward: () => _('fixed server'),
	group: () => _('group of others'),
	direct: () => _('direct, with options'),
	reject: () => _('reject'),
	drop: () => _('drop')
};

const METHODS = [
	'2022-blake3-aes-128-gcm', '2022-blake3-aes-256-gcm', '2022-blake3-chacha20-poly1305',
	'chacha20-ietf-poly1305', 'aes-256-gcm', 'aes-128-gcm'
];

function stateBadge(outbound) {
	if (!outbound)
		return parts.badge('', _('not loaded'));

	const words = { up: _('up'), down: _('down'), unknown: _('not tried yet') };

	return parts.badge({ up: 'ok', down: 'fail' }[outbound.state] ?? '', words[outbound.state] ?? outbound.state);
}

function showStatus(status) {
	const loaded = Object.fromEntries((status.outbounds ?? []).map((one) => [ one.name, one ]));

	for (const section of uci.sections('tproxyd', 'outbound')) {
		const one = loaded[section['.name']];

		fields.fill('state', section['.name'], status.error ? parts.badge('', _('unknown')) : stateBadge(one));
		fields.fill('latency', section['.name'], (one?.latency_ms == null) ? '–' : _('%d ms').format(one.latency_ms));
		fields.fill('traffic', section['.name'], one
			? _('%d sessions, %s up, %s down').format(one.sessions, model.bytes(one.bytes_up), model.bytes(one.bytes_down)) : '–');
	}
}

// Asks the daemon to reach every server as the form has it now, before anything is saved.
function tryServers(map, place) {
	parts.replace(place, E('em', {}, [ _('Trying the servers; this can take some seconds…') ]));

	return daemon.checkDraft(parts.draft(map)).then((found) => {
		const names = uci.sections('tproxyd', 'outbound').map((section) => section['.name']);
		const about = found.filter((one) => one.severity !== 'ok' || names.some((name) => one.text.includes(name)));

		parts.replace(place, about.length ? parts.findingList(about) : parts.badge('ok', _('Nothing is wrong with them.')));
	}, (error) => parts.replace(place, parts.badge('fail', String(error.message ?? error))));
}

function addLinks(text) {
	const links = text.split(/\s+/).filter((link) => link !== '');
	const wrong = [];
	let added = 0;

	for (const link of links) {
		const { error, ...outbound } = model.parseLink(link);

		if (error) {
			wrong.push('%s: %s'.format(link.slice(0, 40), error));
			continue;
		}

		const taken = uci.sections('tproxyd').map((section) => section['.name']);
		const sid = uci.add('tproxyd', 'outbound', model.freeName(outbound.label ?? outbound.server, taken));

		for (const option in outbound)
			uci.set('tproxyd', sid, option, outbound[option]);

		added++;
	}

	return { added: added, wrong: wrong };
}

function pasteLinks(map) {
	const area = E('textarea', { 'class': 'cbi-input-textarea', 'rows': 5, 'style': 'width:100%', 'spellcheck': 'false',
		'name': 'links', 'placeholder': 'socks5://user:password@proxy.example:1080#Home\nss://…' });
	const told = E('div', { 'role': 'alert' }, [ '' ]);

	ui.showModal(_('Add servers from links'), [
		E('label', {}, [ _('Links, one in each line: socks5://, http:// or ss://'), area ]),
		told,
		E('div', { 'class': 'button-row' }, [
			parts.button(_('Dismiss'), 'neutral', () => ui.hideModal()), ' ',
			parts.button(_('Add'), 'positive', () => {
				const result = addLinks(area.value);

				if (result.wrong.length) {
					parts.replace(told, E('ul', {}, result.wrong.map((line) => E('li', {}, [ line ]))));

					return result.added ? map.save(null, true) : null;
				}

				ui.hideModal();

				return map.save(null, true);
			})
		])
	]);
	area.focus();
}

function removeOutbound(section, sid, remove) {
	const uses = model.usesOf(daemon.sections(), sid);

	return fields.confirmRemoval(sid, uses.map((use) => '%s %s · %s'.format(use.type, fields.called(uci.get('tproxyd', use.section)), use.option)),
		_('If you delete it, these go to “direct” instead; in a group it is left out.'), () => {
			for (const use of uses) {
				const left = model.values(use.value).filter((one) => one !== sid);

				uci.set('tproxyd', use.section, use.option, (use.option === 'member') ? left : 'direct');
			}

			return remove();
		});
}

return view.extend({
	load: () => uci.load('tproxyd'),

	render() {
		const map = new form.Map('tproxyd', _('Servers'),
			_('Ways out of this router: proxy servers, fixed servers, and groups that choose among them.'));
		const tried = E('div', { 'role': 'status', 'aria-live': 'polite' }, [ '' ]);

		const section = map.section(form.GridSection, 'outbound');

		section.addremove = true;
		section.anonymous = false;
		section.nodescriptions = true;
		section.modaltitle = (sid) => _('Server') + ': ' + sid;
		section.addbtntitle = _('Add a server');
		section.tab('general', _('General'));
		section.tab('traffic', _('Traffic'));
		section.tab('health', _('Health'));
		parts.judgeDialog(section);

		const remove = section.handleRemove;

		section.handleRemove = function(sid, ev) {
			return removeOutbound(this, sid, () => remove.call(this, sid, ev));
		};

		fields.add(section, null, form.Flag, 'enabled', _('On'), null, { default: '1', editable: true, modalonly: false });
		fields.shown(section, 'server', _('Server'), (one) => one.server ? '%s:%s'.format(one.server, one.port ?? '?')
			: model.values(one.member).join(', '));
		fields.shown(section, 'kind', _('Type'), (one) => TYPES[one.type]?.() ?? one.type);
		fields.shown(section, 'state', _('State'), () => '…');
		fields.shown(section, 'latency', _('Latency'), () => '…');
		fields.shown(section, 'traffic', _('Traffic'), () => '…');

		const general = (type, name, title, help, more) => fields.add(section, 'general', type, name, title, help, more);
		const traffic = (type, name, title, help, more) => fields.add(section, 'traffic', type, name, title, help, more);
		const health = (type, name, title, help, more) => fields.add(section, 'health', type, name, title, help, more);
		const only = (option, types) => types.forEach((type) => option.depends('type', type));
		let o;

		general(form.Value, 'label', _('Name for people'));
		o = general(form.ListValue, 'type', _('Type'), null, { rmempty: false, default: 'socks5' });
		Object.keys(TYPES).forEach((type) => o.value(type, TYPES[type]()));
		only(general(form.Value, 'server', _('Server'), _('Its address or name.'), { datatype: 'host', rmempty: false }), SERVED);
		only(general(form.Value, 'port', _('Port'), null, { datatype: 'port', rmempty: false }), SERVED);
		o = general(form.Value, 'method', _('Cipher'), null, { rmempty: false });
		METHODS.forEach((method) => o.value(method));
		o.depends('type', 'shadowsocks');
		only(general(form.Value, 'username', _('User name')), [ 'socks5', 'http' ]);
		only(general(form.Value, 'password', _('Password'), null, { password: true }), PROXIES);

		o = general(form.DynamicList, 'member', _('Members'), _('The first is preferred.'));
		uci.sections('tproxyd', 'outbound').filter((one) => one.type !== 'group').forEach((one) => o.value(one['.name']));
		o.depends('type', 'group');
		o = general(form.ListValue, 'policy', _('Choice'), null, { default: 'failover' });
		o.value('failover', _('the first that is up'));
		o.value('fastest', _('the fastest'));
		o.value('balance', _('spread over all'));
		o.depends('type', 'group');
		o = general(form.ListValue, 'on_all_down', _('If none is up'), null, { default: 'reject' });
		o.value('reject', _('reject'));
		o.value('direct', _('direct: straight out'));
		o.depends('type', 'group');

		only(traffic(form.Flag, 'udp', _('Carries UDP'), null, { default: '1' }), [ ...DIALLED, 'group' ]);
		o = traffic(form.ListValue, 'udp_outbound', _('UDP instead'), _('Refused UDP lets browsers fall back to TCP at once.'),
			{ default: 'reject' });
		fields.offerOutbounds(o);
		o.depends('udp', '0');
		only(traffic(form.Flag, 'send_domain', _('Send names'), _('The server looks the name up, instead of this network’s DNS.')), PROXIES);
		only(traffic(form.Flag, 'keep_source', _('Keep the client’s address')), [ 'direct', 'forward' ]);
		only(traffic(form.Flag, 'full_cone', _('Full cone'), _('Anyone may answer a client’s UDP port, as games and calls like it.')), [ 'direct' ]);
		o = traffic(form.ListValue, 'send_proxy', _('PROXY header'));
		o.value('', _('none'));
		o.value('v1');
		o.value('v2');
		o.depends('type', 'forward');
		only(traffic(form.Value, 'device', _('Out by device')), DIALLED);
		only(traffic(form.Value, 'fwmark', _('Mark'), _('For routing by other programs.'), fields.like('mark')), DIALLED);
		only(traffic(form.Value, 'spare', _('Spare connections'), _('Kept open in advance.'), { datatype: 'range(0,64)', placeholder: '0' }), SERVED);
		for (const [ name, title, preset ] of [ [ 'connect_timeout', _('Connect timeout'), '5s' ],
			[ 'idle_timeout', _('Idle timeout of TCP'), '125m' ], [ 'udp_timeout', _('Idle timeout of UDP'), '180s' ] ])
			only(traffic(form.Value, name, title, null, fields.like('duration', { placeholder: preset })), DIALLED);

		for (const [ name, title, help, more ] of [
			[ 'check_interval', _('Check every'), null, fields.like('duration', { placeholder: '30s' }) ],
			[ 'check_timeout', _('Wait for'), null, fields.like('duration', { placeholder: '5s' }) ],
			[ 'check_target', _('Ask through it'), _('A host and port of your choice; none by default.'), fields.like('place') ],
			[ 'rise', _('Good checks until up'), null, { datatype: 'range(1,100)', placeholder: '2' } ],
			[ 'fall', _('Failed checks until down'), null, { datatype: 'range(1,100)', placeholder: '2' } ]
		])
			only(health(form.Value, name, title, help, more), PROXIES);

		const refresh = parts.watch(daemon.status, showStatus);

		return map.render().then((node) => {
			window.setTimeout(refresh, 0);

			return E('div', {}, [
				parts.style(),
				node,
				E('div', { 'class': 'tproxyd-fields' }, [
					parts.button(_('Paste links…'), 'add', () => pasteLinks(map)),
					parts.button(_('Try these servers now'), 'action', () => tryServers(map, tried))
				]),
				tried,
				parts.judge(map)
			]);
		});
	}
});
