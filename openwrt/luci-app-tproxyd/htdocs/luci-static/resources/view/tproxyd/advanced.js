'use strict';
'require view';
'require form';
'require uci';
'require tproxyd.daemon as daemon';
'require tproxyd.fields as fields';
'require tproxyd.model as model';
'require tproxyd.parts as parts';
'require tproxyd.presets as presets';

const INTERCEPTING = [ 'tproxy', 'redirect' ];
const TOLD = [ 'plain', 'http', 'socks5' ];

/*
 * Ports that people and devices of the LAN reach the router itself by. A listener there would cut off the browser that
 * sets it up, and LuCI would roll everything back.
 */
const ROUTERS_OWN = { 22: 'SSH', 53: 'DNS', 67: 'DHCP', 68: 'DHCP', 80: 'HTTP', 123: 'NTP', 443: 'HTTPS', 546: 'DHCPv6', 547: 'DHCPv6' };

function mayListenOn(port) {
	const used = ROUTERS_OWN[port] ?? ((port === window.location.port) ? 'LuCI' : null);

	return used ? _('Port %s is the router’s own (%s): you would lose this page.').format(port, used) : true;
}

// The way to the Internet is where flows go, not where they come from.
function mayTakeFrom(networks, names) {
	const wan = networks.find((one) => one.wan && (model.values(names).includes(one.name) || model.values(names).includes(one.device)));

	return wan ? _('“%s” leads to the Internet: choose the networks of your devices.').format(wan.name) : true;
}

function listeners(map, networks) {
	const section = map.section(form.GridSection, 'listener', _('Listeners'),
		_('What is intercepted. Traffic from your devices to the router itself is always left alone.'));

	section.addremove = true;
	section.anonymous = false;
	section.sortable = true;
	section.nodescriptions = true;
	section.addbtntitle = _('Add a listener');
	section.modaltitle = (sid) => _('Listener') + ': ' + sid;
	section.tab('general', _('General'));
	section.tab('narrow', _('Only these packets'));
	parts.judgeDialog(section);

	fields.add(section, null, form.Flag, 'enabled', _('On'), null, { default: '1', editable: true, modalonly: false });
	fields.shown(section, 'mode', _('Mode'), (one) => one.mode ?? 'tproxy');
	fields.shown(section, 'place', _('Port'), (one) => one.port ?? '');
	fields.shown(section, 'takes', _('Takes'), (one) => fields.summary(one));

	const put = (tab, type, name, title, help, more) => fields.add(section, tab, type, name, title, help, more);
	const only = (option, modes) => modes.forEach((mode) => option.depends('mode', mode));
	let o;

	put('general', form.Value, 'label', _('Name for people'));
	o = put('general', form.ListValue, 'mode', _('Mode'), null, { rmempty: false, default: 'tproxy' });
	o.value('tproxy', _('intercept (TPROXY)'));
	o.value('redirect', _('intercept (REDIRECT)'));
	o.value('plain', _('told where to: PROXY header'));
	o.value('http', _('HTTP proxy for clients'));
	o.value('socks5', _('SOCKS5 proxy for clients'));
	o = put('general', form.Value, 'port', _('Port'), null, { datatype: 'port', rmempty: false, placeholder: '2333' });
	o.validate = (sid, value) => mayListenOn(value);
	put('general', form.Value, 'address', _('Address'), _('None: any.'), { datatype: 'ipaddr(1)' });
	o = put('general', form.DynamicList, 'network', _('Networks'), null, { validate: (sid, value) => mayTakeFrom(networks, value) });
	fields.offerNetworks(o, networks.filter((one) => !one.wan));
	put('general', form.DynamicList, 'device', _('Devices'), _('A trailing * stands for any rest.'), { validate: (sid, value) => mayTakeFrom(networks, value) });
	o = put('general', form.ListValue, 'proto', _('Protocol'), null, { default: 'tcpudp' });
	o.value('tcpudp', _('TCP and UDP'));
	o.value('tcp', 'TCP');
	o.value('udp', 'UDP');
	o = put('general', form.ListValue, 'family', _('Family'), null, { default: 'any' });
	o.value('any', _('IPv4 and IPv6'));
	o.value('ipv4', 'IPv4');
	o.value('ipv6', 'IPv6');
	only(put('general', form.Flag, 'router', _('The router’s own traffic too')), INTERCEPTING);
	put('general', form.Flag, 'accept_proxy', _('Expects a PROXY header')).depends('mode', 'plain');
	only(put('general', form.DynamicList, 'allow_ip', _('Who may connect'), _('Nobody by default.'), fields.like('address', { mayExclude: true })), TOLD);

	for (const [ name, title, kind ] of [ [ 'src_ip', _('From addresses'), 'address' ], [ 'src_mac', _('From MAC addresses'), 'mac' ],
		[ 'src_port', _('From ports'), 'ports' ], [ 'dest_ip', _('To addresses'), 'address' ], [ 'dest_port', _('To ports'), 'ports' ] ])
		only(put('narrow', form.DynamicList, name, title, null, fields.like(kind, { mayExclude: true })), INTERCEPTING);
}

function globals(map) {
	const section = map.section(form.NamedSection, presets.globals(), 'globals', _('The daemon'));
	const put = (tab, type, name, title, help, more) => fields.add(section, tab, type, name, title, help, { modalonly: null, ...more });
	const choose = (tab, name, title, help, preset, choices) => {
		const option = put(tab, form.ListValue, name, title, help, { default: preset });

		choices.forEach(([ value, words ]) => option.value(value, words ?? value));
	};
	const duration = (preset) => fields.like('duration', { placeholder: preset });

	section.addremove = false;
	section.tab('failure', _('When it fails'));
	section.tab('sizes', _('Sizes'));
	section.tab('network', _('Marks and tables'));
	section.tab('names', _('Names'));
	section.tab('other', _('Other'));

	choose('failure', 'on_failure', _('While the daemon does not run'), null, 'direct',
		[ [ 'direct', _('traffic flows as if it were not installed') ], [ 'block', _('what it took is dropped') ] ]);
	put('failure', form.Flag, 'reclassify', _('Running sessions get new rules too'));
	put('failure', form.Flag, 'drop_stale', _('End sessions of what was removed'));

	for (const [ name, title ] of [ [ 'tcp_sessions', _('Most TCP sessions') ], [ 'udp_sessions', _('Most UDP flows') ] ])
		put('sizes', form.Value, name, title, _('16 to 16384, or auto: by the router’s memory.'), { datatype: 'or("auto",range(16,16384))', placeholder: 'auto' });
	put('sizes', form.Value, 'relay_memory', _('Most bytes in flight'), null, fields.like('size', { placeholder: 'auto' }));
	put('sizes', form.Value, 'client_sessions', _('Most sessions of one client'), _('0: no quota.'), { datatype: 'range(0,16384)', placeholder: '0' });
	put('sizes', form.Value, 'kernel_set_max', _('Largest set in the kernel'), null, { datatype: 'or("auto",uinteger)', placeholder: 'auto' });

	put('network', form.Value, 'mark', _('Mark of what is intercepted'), null, fields.like('mark', { placeholder: '0x01000000/0x03000000' }));
	put('network', form.Value, 'self_mark', _('Mark of its own packets'), null, fields.like('mark', { placeholder: '0x02000000/0x03000000' }));
	put('network', form.Value, 'table', _('Routing table'), null, { datatype: 'range(1,4294967295)', placeholder: '233' });
	put('network', form.Value, 'rule_priority', _('Priority of its routing rule'), null, { datatype: 'range(1,32765)', placeholder: '533' });
	choose('network', 'backend', _('Packet filter'), null, 'auto', [ [ 'auto', _('automatic') ], [ 'nft', 'nftables' ], [ 'iptables', 'iptables' ] ]);
	choose('network', 'kernel_verdicts', _('What the kernel could decide alone'), null, '',
		[ [ '', _('as the daemon prefers') ], [ '1', _('is left to the kernel') ], [ '0', _('goes through the process') ] ]);

	put('names', form.DynamicList, 'sniff_port', _('Look for names on'), _('Protocols and ports, as tcp:443.'));
	put('names', form.Value, 'sniff_timeout', _('Look for'), null, duration('300ms'));
	put('names', form.Value, 'resolver', _('Resolver for servers’ names'), null, { placeholder: '/etc/resolv.conf' });
	put('names', form.Flag, 'dnsmasq', _('Let dnsmasq fill sets of names'), _('Needs dnsmasq-full.'));

	choose('other', 'log_level', _('Log'), null, 'info', [ [ 'error' ], [ 'warn' ], [ 'info' ], [ 'debug' ], [ 'trace' ] ]);
	put('other', form.Value, 'metrics', _('Metrics for Prometheus on'), null, fields.like('place', { placeholder: '127.0.0.1:9233' }));
	put('other', form.Value, 'on_event', _('Script for events'), null, { placeholder: '/etc/tproxyd.event' });
	put('other', form.Flag, 'sandbox', _('Give up system calls that are not needed'), null, { default: '1' });
}

return view.extend({
	load: () => Promise.all([ daemon.networks(), uci.load('tproxyd') ]),

	render([ networks ]) {
		const map = new form.Map('tproxyd', _('Advanced'), _('Listeners, marks, tables, sizes. The defaults suit most routers.'));

		listeners(map, networks);
		globals(map);

		return map.render().then((node) => E('div', {}, [ parts.style(), node, parts.judge(map) ]));
	}
});
