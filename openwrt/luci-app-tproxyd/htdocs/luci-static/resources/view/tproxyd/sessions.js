'use strict';
'require view';
'require tproxyd.daemon as daemon';
'require tproxyd.model as model';
'require tproxyd.parts as parts';

// Rows of a page. The daemon counts them off, so that thousands of sessions cost neither browser nor router much.
const PAGE = 50;

return view.extend({
	handleSave: null,
	handleSaveApply: null,
	handleReset: null,

	load: () => Promise.resolve(),

	render() {
		const readonly = !L.hasViewPermission();
		const body = E('div', { 'class': 'tproxyd-scroll', 'id': 'tproxyd-sessions' }, [ '' ]);
		const where = E('span', { 'role': 'status' }, [ '' ]);
		const inputs = {
			client: parts.input('filter-client', { 'placeholder': '192.168.1.20' }),
			outbound: parts.input('filter-outbound', { 'placeholder': 'proxy' }),
			dst: parts.input('filter-dst', { 'placeholder': '203.0.113.9' })
		};
		let offset = 0;

		const filter = () => Object.fromEntries(Object.entries(inputs).map(([ name, one ]) => [ name, one.value.trim() ]));

		const kick = (one) => daemon.kickSession(one.id).then((answer) => parts.went(answer) && refresh());

		const row = (one) => [
			String(one.proto).toUpperCase(), one.client,
			E('span', {}, [ one.domain ? '%s (%s)'.format(one.domain, one.orig_dst) : one.orig_dst ]),
			(one.rule == null) ? '–' : String(one.rule), one.outbound, model.duration(one.age_s),
			model.bytes(one.bytes_up), model.bytes(one.bytes_down), one.state ?? '',
			parts.button(_('End'), 'negative', () => kick(one),
				{ 'disabled': readonly ? '' : null, 'aria-label': _('End the session of %s').format(one.client) })
		];

		const titles = [ _('Protocol'), _('Client'), _('Destination'), _('Rule'), _('Way out'), _('Age'), _('Up'), _('Down'), _('State'), '' ];

		// One more than a page holds is asked for: then one knows whether there is another.
		const refresh = parts.watch(() => daemon.sessions(filter(), offset, PAGE + 1), (answer) => {
			const all = answer.sessions ?? [];

			previous.disabled = offset === 0;
			next.disabled = all.length <= PAGE;
			parts.replace(where, all.length ? _('%d to %d').format(offset + 1, offset + Math.min(all.length, PAGE)) : '');

			// What has the focus must not be taken away under the finger.
			if (body.contains(document.activeElement))
				return;

			parts.replace(body, answer.error ? parts.badge('fail', answer.error)
				: parts.table(titles, all.slice(0, PAGE).map(row), _('No sessions.')));
		});

		const turn = (pages) => {
			offset = Math.max(0, offset + pages * PAGE);

			return refresh();
		};
		const previous = parts.button(_('Previous'), 'neutral', () => turn(-1));
		const next = parts.button(_('Next'), 'neutral', () => turn(1));
		const seek = () => {
			offset = 0;

			return refresh();
		};
		const kickClient = () => {
			const client = inputs.client.value.trim();

			if (!client)
				return parts.notify(_('Write the client’s address into the filter first.'), 'warning');

			return daemon.kickClient(client).then((answer) => parts.went(answer) && refresh());
		};

		refresh();

		return E('div', {}, [
			parts.style(),
			parts.text('h2', _('Sessions')),
			parts.text('p', _('What goes through the process now. What the kernel decides alone is not listed; its rules’ hits count it.')),
			E('form', { 'class': 'tproxyd-fields', 'submit': (ev) => { ev.preventDefault(); seek(); } }, [
				parts.field(_('Client'), inputs.client), parts.field(_('Way out'), inputs.outbound), parts.field(_('Destination'), inputs.dst),
				parts.button(_('Filter'), 'action', seek, { 'type': 'submit', 'click': null }),
				parts.button(_('End all of this client'), 'negative', kickClient, { 'disabled': readonly ? '' : null })
			]),
			body,
			E('div', { 'class': 'tproxyd-fields' }, [ previous, where, next ])
		]);
	}
});
