'use strict';
'require view';
'require form';
'require uci';
'require tproxyd.daemon as daemon';
'require tproxyd.fields as fields';
'require tproxyd.model as model';
'require tproxyd.parts as parts';
'require tproxyd.presets as presets';

const DAYS = { Mon: () => _('Monday'), Tue: () => _('Tuesday'), Wed: () => _('Wednesday'), Thu: () => _('Thursday'),
	Fri: () => _('Friday'), Sat: () => _('Saturday'), Sun: () => _('Sunday') };

function rules() {
	return uci.sections('tproxyd', 'rule');
}

// Hits go by the number that the rule had when the daemon read it; unsaved moves and additions shift what is shown here.
function showStatus(status) {
	const hidden = model.hiddenRules(rules());

	rules().forEach((rule, number) => {
		const loaded = (status.rules ?? []).find((one) => one.number === number);
		const same = loaded && (loaded.name ?? '') === (rule.name ?? '') && loaded.outbound === rule.outbound;
		const above = hidden[rule['.name']];
		const others = rules().findIndex((one) => one['.name'] === above);

		fields.fill('hits', rule['.name'], same ? String(loaded.hits) : '–');
		fields.fill('note', rule['.name'], above
			? parts.badge('warn', _('never matches: rule %d takes it all').format(others))
			: (same && !loaded.active) ? parts.badge('warn', _('inactive: its set is empty')) : null);
	});
}

function explainForm() {
	const answer = E('pre', { 'class': 'tproxyd-pre', 'role': 'status', 'aria-live': 'polite', 'id': 'tproxyd-explanation' }, [ '' ]);
	const inputs = {
		proto: parts.select('explain-proto', [ [ 'tcp', 'TCP' ], [ 'udp', 'UDP' ] ], 'tcp'),
		src: parts.input('explain-src', { 'placeholder': '192.168.1.20:40000', 'required': '' }),
		dst: parts.input('explain-dst', { 'placeholder': '203.0.113.9:443', 'required': '' }),
		domain: parts.input('explain-domain', { 'placeholder': 'www.example.com' }),
		mac: parts.input('explain-mac', { 'placeholder': '02:00:5e:10:00:01' })
	};
	const ask = () => {
		const flow = {};

		for (const name in inputs)
			flow[name] = inputs[name].value.trim();

		return daemon.explain(flow).then((told) => parts.replace(answer, told.error ?? told.message ?? ''));
	};

	return E('div', { 'class': 'cbi-section' }, [
		parts.text('h3', _('What becomes of a connection?')),
		E('form', { 'class': 'tproxyd-fields', 'submit': (ev) => { ev.preventDefault(); ask(); } }, [
			parts.field(_('Protocol'), inputs.proto),
			parts.field(_('Client and port'), inputs.src),
			parts.field(_('Destination and port'), inputs.dst),
			parts.field(_('Name'), inputs.domain),
			parts.field(_('MAC address'), inputs.mac),
			parts.button(_('Explain'), 'action', ask, { 'type': 'submit', 'click': null })
		]),
		answer
	]);
}

return view.extend({
	load: () => Promise.all([ daemon.networks(), daemon.hostNames(), uci.load('tproxyd') ]),

	render([ networks, hosts ]) {
		const map = new form.Map('tproxyd', _('Rules'),
			_('They are asked from top to bottom, and the first that matches decides. What none matches goes where “otherwise” says.'));

		const section = map.section(form.GridSection, 'rule');

		section.addremove = true;
		section.anonymous = true;
		section.sortable = true;
		section.nodescriptions = true;
		section.addbtntitle = _('Add a rule');
		section.modaltitle = (sid) => _('Rule') + ': ' + (uci.get('tproxyd', sid, 'name') ?? _('without a name'));
		section.tab('general', _('General'));
		section.tab('who', _('From whom'));
		section.tab('where', _('Where to'));
		section.tab('when', _('When and how much'));
		parts.judgeDialog(section);

		fields.add(section, null, form.Flag, 'enabled', _('On'), null, { default: '1', editable: true, modalonly: false });
		fields.shown(section, 'title', _('Name'), (rule) => rule.name ?? '');
		fields.shown(section, 'matches', _('Matches'), (rule) => fields.summary(rule));
		fields.shown(section, 'goes', _('Goes to'), (rule) => rule.outbound ?? '');
		fields.shown(section, 'hits', _('Hits'), () => '…');
		fields.shown(section, 'note', _('Note'), () => '');

		const put = (tab, type, name, title, help, more) => fields.add(section, tab, type, name, title, help, more);
		const excluding = (kind) => fields.like(kind, { mayExclude: true });
		let o;

		put('general', form.Value, 'name', _('Name'));
		fields.offerOutbounds(put('general', form.ListValue, 'outbound', _('Goes to'), null, { rmempty: false, default: 'direct' }));
		o = put('general', form.ListValue, 'proto', _('Protocol'), null, { default: 'any' });
		o.value('any', _('TCP and UDP'));
		o.value('tcp', 'TCP');
		o.value('udp', 'UDP');
		o = put('general', form.ListValue, 'family', _('Family'), null, { default: 'any' });
		o.value('any', _('IPv4 and IPv6'));
		o.value('ipv4', 'IPv4');
		o.value('ipv6', 'IPv6');

		o = put('who', form.DynamicList, 'src_mac', _('MAC addresses'), null, excluding('mac'));
		hosts.leases.forEach((lease) => o.value(lease.mac, '%s (%s)'.format(lease.mac, lease.name || lease.address)));
		put('who', form.DynamicList, 'src_ip', _('Addresses'), _('Addresses, prefixes, ranges or @set; “!” before one excludes it.'), excluding('address'));
		put('who', form.DynamicList, 'src_port', _('Source ports'), null, excluding('ports'));
		fields.offerNetworks(put('who', form.DynamicList, 'network', _('Networks')), networks);
		put('who', form.DynamicList, 'device', _('Devices'));

		put('where', form.DynamicList, 'domain', _('Names'), _('example.com means it and all below; =example.com only itself; @set a list.'), excluding('domain'));
		put('where', form.DynamicList, 'dest_ip', _('Addresses'), _('Addresses, prefixes, ranges or @set; “!” before one excludes it.'), excluding('address'));
		put('where', form.DynamicList, 'dest_port', _('Ports'), null, excluding('ports'));

		put('when', form.Value, 'start_time', _('From'), null, fields.like('clock', { placeholder: '21:30' }));
		put('when', form.Value, 'stop_time', _('Until'), _('It may be past midnight.'), fields.like('clock', { placeholder: '06:00' }));
		o = put('when', form.MultiValue, 'weekdays', _('On'));
		Object.keys(DAYS).forEach((day) => o.value(day, DAYS[day]()));
		put('when', form.Flag, 'utc_time', _('Times are UTC'));
		put('when', form.Value, 'rate', _('Rate'), _('Bits per second for each client, each way, as 20M.'), fields.like('size'));
		put('when', form.Value, 'quota', _('Quota'), _('Bytes for each client, as 50G.'), fields.like('size'));
		o = put('when', form.ListValue, 'quota_period', _('In each'), null, { default: 'month' });
		o.value('day', _('day'));
		o.value('month', _('month'));
		fields.offerOutbounds(put('when', form.ListValue, 'quota_outbound', _('Goes to, when used up'), null, { default: 'reject' }));

		const rest = map.section(form.NamedSection, presets.globals(), 'globals', _('Otherwise'));

		fields.offerOutbounds(fields.add(rest, null, form.ListValue, 'default', _('What no rule matches goes to'), null, { default: 'direct' }));

		const refresh = parts.watch(daemon.status, showStatus);

		return map.render().then((node) => {
			window.setTimeout(refresh, 0);

			return E('div', {}, [ parts.style(), node, parts.judge(map), explainForm() ]);
		});
	}
});
