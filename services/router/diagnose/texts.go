package diagnose

// text is what a finding says, in both languages: why, and what to do (empty: nothing). {words} are filled in.
type text struct{ en, ja, adviceEN, adviceJA string }

// titles of the steps, in the order of the checklist.
var titles = map[Step]text{
	Inputs:         {en: "Callback inputs", ja: "コールバックの入力値"},
	Received:       {en: "Received by the relay", ja: "中継サーバでの受信"},
	Dedupe:         {en: "Dedupe", ja: "重複の判定"},
	Phone1:         {en: "Phone-1 state", ja: "電話1の状態"},
	UpstreamSend:   {en: "Sending to TopS.II", ja: "TopS.IIへの送信"},
	UpstreamAnswer: {en: "TopS.II's answer", ja: "TopS.IIの応答"},

	Events:     {en: "Events received", ja: "イベントの受信"},
	Understood: {en: "Events understood", ja: "イベントの解釈"},
	Decided:    {en: "Decided", ja: "判定"},
	Registered: {en: "Registrations", ja: "登録の作成"},
	Delivered:  {en: "Delivered to the CRM", ja: "CRMへの配信"},
}

// texts by the code of a finding.
var texts = map[string]text{
	// Inputs.
	"inputs_ok":       {"Everything that the rules need is there.", "ルールに必要な値はすべて揃っています。", "", ""},
	"inputs_unread":   {"Nothing was received, so there is nothing to check.", "何も受信していないため、確認できる値がありません。", "", ""},
	"inputs_refused":  {"The callback was refused ({status}): {message}", "コールバックは拒否されました({status}): {message}", "Correct {field} in the dialer's settings; send this one again with: callrelay resend {request} --set {field}=... --reason ...", "ダイヤラー側の設定で {field} を修正し、この分は callrelay resend {request} --set {field}=... --reason ... で再送してください。"},
	"inputs_method":   {"The request was refused ({status}) before its parameters were read: {message}", "パラメータを読む前にリクエストが拒否されました({status}): {message}", "Check the callback URL in the dialer's settings: it is called with GET and a query of at most 16 KB.", "ダイヤラー側のコールバックURLを確認してください(GET、クエリは16KBまで)。"},
	"inputs_odd":      {"Something was read differently from what was sent: {note}", "送られた値の一部は別の読み方をしました: {note}", "Check phoneList, shareablePhonesDialIndex and the times in the dialer's settings.", "ダイヤラー側の phoneList、shareablePhonesDialIndex、時刻の設定を確認してください。"},
	"inputs_panicked": {"The rules could not process the callback: {message}", "ルールがコールバックを処理できませんでした: {message}", "Report this to whoever maintains callrelay; after the correction send it again with: callrelay resend {request} --reason ...", "callrelay の保守担当に連絡し、修正後に callrelay resend {request} --reason ... で再送してください。"},

	// Received.
	"received_ok":           {"{count} callbacks were received, the last as request {request}.", "コールバックを {count} 件受信しました(最後のリクエストは {request})。", "", ""},
	"received_refused":      {"The request was received, and refused.", "リクエストは受信しましたが、拒否しました。", "", ""},
	"received_inside":       {"It came from another call of the relay, not from outside.", "外部からではなく、中継サーバ内の別の呼から引き継がれました。", "", ""},
	"received_nothing":      {"Nothing of this call was received, or it ended so long ago that it is no longer kept.", "この呼のコールバックは受信していないか、保存期間を過ぎています。", "Check the call id, the callback URL in the dialer's settings and whether its address may send (AMEYO_ALLOWED_NETWORKS). A refused callback is found under its request id: callrelay call request/...", "呼のID、ダイヤラー側のコールバックURL、送信元アドレスの許可(AMEYO_ALLOWED_NETWORKS)を確認してください。拒否されたものは callrelay call request/... で確認できます。"},
	"received_spooled":      {"Nothing of this call is recorded, but {count} callbacks that were acknowledged wait in ingress' spool, and may be of it.", "この呼の記録はありませんが、受付済みのコールバック {count} 件が ingress のスプールで待機しており、その中に含まれる可能性があります。", "They are decided by themselves once router, state and Redis work: callrelay alarms says when the spool is empty. Then look again.", "router、state、Redis が復旧すると自動で処理されます。callrelay alarms でスプールが空になったことを確認し、もう一度確認してください。"},
	"received_late":         {"Request {request} was recorded {age} after it was received.", "リクエスト {request} は受信から {age} 後に記録されました。", "", ""},
	"received_start_only":   {"Only the call start was received; there is no call end yet.", "通話開始のみ受信しており、通話終了はまだ届いていません。", "If the call is over, check the dialer's callback for call ends.", "通話が終わっている場合は、ダイヤラー側の通話終了コールバックの設定を確認してください。"},
	"received_no_start":     {"No call start was received; TopS.II does not accept the end of a call that it does not know.", "通話開始を受信していません。TopS.IIは知らない呼の終了を受け付けません。", "Check the dialer's callback for call starts (call_start.php).", "ダイヤラー側の通話開始コールバック(call_start.php)の設定を確認してください。"},
	"received_journal_full": {"The journal of this call is full; what came later is not in it.", "この呼の記録は上限に達しており、それ以降の内容は残っていません。", "", ""},

	// Dedupe.
	"dedupe_ok":         {"No callback was skipped as a repeat.", "重複として省かれたコールバックはありません。", "", ""},
	"dedupe_repeat":     {"Request {request} repeats {of} and was skipped ({gate}); the first one counts.", "リクエスト {request} は {of} の重複として省かれました({gate})。最初のものが有効です。", "", ""},
	"dedupe_differs":    {"Request {request} was skipped as a repeat of {of}, but differs from it in dial index or disposition.", "リクエスト {request} は {of} の重複として省かれましたが、発信番号の順番または通話結果が異なります。", "Compare the two. If the second one is right, send it instead: callrelay resend {request} --force --reason ...", "両者を比べ、後のものが正しければ callrelay resend {request} --force --reason ... で再送してください。"},
	"dedupe_superseded": {"Request {request} was replaced by request {of}.", "リクエスト {request} はリクエスト {of} に置き換えられました。", "", ""},

	// Phone-1 state.
	"phone1_none":         {"No status of a phone 1 was involved.", "電話1の状態は関係していません。", "", ""},
	"phone1_used":         {"The status of phone 1 was combined with phone 2 (phone1_state_used=true).", "電話1の状態は電話2と合わせて送られました(phone1_state_used=true)。", "", ""},
	"phone1_waiting":      {"Phone 1 was not reached ({status}); the relay waits for the callback of phone 2.", "電話1は不通({status})で、電話2のコールバックを待っています。", "", ""},
	"phone1_overdue":      {"Phone 1 was not reached ({status}); the time to wait for phone 2 is over, which is about to be recorded.", "電話1は不通({status})で、電話2を待つ時間が過ぎました。まもなく記録されます。", "", ""},
	"phone1_expired":      {"Phone 1 was not reached ({status}) and the callback of phone 2 never came: nothing was sent to TopS.II.", "電話1は不通({status})で、電話2のコールバックが届かず、TopS.IIには何も送られていません。", "Check whether the dialer dialled phone 2 and sends its callback. To register phone 1 alone: callrelay resend {request} --set phoneList=[] --set phone2= --reason ... PHONE1_EXPIRY=send does so by itself.", "ダイヤラーが電話2に発信しコールバックを送っているか確認してください。電話1のみ登録する場合は callrelay resend {request} --set phoneList=[] --set phone2= --reason ... を実行します。PHONE1_EXPIRY=send で自動化できます。"},
	"phone1_expired_sent": {"The callback of phone 2 never came; phone 1 ({status}) was sent alone.", "電話2のコールバックが届かなかったため、電話1({status})のみ送られました。", "", ""},
	"phone1_unknown":      {"Phone 2 came before phone 1, so errorInfo1 is UNKNOWN.", "電話2が電話1より先に届いたため、errorInfo1 は UNKNOWN です。", "Nothing can be done for this call; if it happens often, check the order of the dialer's callbacks.", "この呼については対処できません。頻繁に起きる場合はダイヤラーの送信順を確認してください。"},
	"phone1_absorbed":     {"A late phone 1 ({status}) was recorded only: phone 2 had already been sent.", "遅れて届いた電話1({status})は記録のみです。電話2は送信済みです。", "", ""},
	"phone1_replaced":     {"A status of phone 1 ({status}) was replaced by that of a new dialling.", "電話1の状態({status})は新しい発信のもので置き換えられました。", "", ""},

	// Sending.
	"send_ok":            {"Delivery {delivery} ({endpoint}) was sent.", "配信 {delivery}({endpoint})は送信されました。", "", ""},
	"send_nothing":       {"Nothing was to be sent.", "送信するものはありません。", "", ""},
	"send_queued":        {"Delivery {delivery} ({endpoint}) waits for its turn.", "配信 {delivery}({endpoint})は順番を待っています。", "", ""},
	"send_behind":        {"Delivery {delivery} ({endpoint}) waits behind delivery {before}, which goes first.", "配信 {delivery}({endpoint})は、先に送られる配信 {before} を待っています。", "", ""},
	"send_stuck":         {"Delivery {delivery} ({endpoint}) waits because of {destination}: {reason}", "配信 {delivery}({endpoint})は {destination} のため待機しています: {reason}", "It goes on by itself when that is over. callrelay destinations shows the backlog and how long the oldest has waited.", "解消されると自動で送信されます。滞留の件数と経過時間は callrelay destinations で確認できます。"},
	"send_sending":       {"Delivery {delivery} ({endpoint}) is being sent.", "配信 {delivery}({endpoint})を送信しています。", "", ""},
	"send_retrying":      {"Delivery {delivery} ({endpoint}) failed {attempts} times and is tried again: {reason}", "配信 {delivery}({endpoint})は {attempts} 回失敗し、再試行します: {reason}", "", ""},
	"send_held":          {"Delivery {delivery} ({endpoint}) waits because {destination} is held: {reason}", "配信 {delivery}({endpoint})は {destination} が保留中のため待機しています: {reason}", "Put right what the reason names, then: callrelay release {destination}. A hold that the relay made itself also ends by itself.", "理由に示された問題を解消し、callrelay release {destination} を実行してください。中継サーバ自身による保留は自動でも解除されます。"},
	"send_disabled":      {"Delivery {delivery} ({endpoint}) was prepared and not sent: real sending is disabled.", "配信 {delivery}({endpoint})は準備されましたが、実送信が無効のため送られていません。", "Set ENABLE_REAL_SEND=true and restart; then send it with: callrelay resend {request} --reason ...", "ENABLE_REAL_SEND=true にして再起動し、callrelay resend {request} --reason ... で送信してください。"},
	"send_dead":          {"Delivery {delivery} ({endpoint}) never got an answer from TopS.II: {reason}", "配信 {delivery}({endpoint})はTopS.IIから応答を得られませんでした: {reason}", "Check the way to TopS.II (base URL, network, TLS), then: callrelay retry {call} {delivery}", "TopS.IIへの経路(ベースURL、ネットワーク、TLS)を確認し、callrelay retry {call} {delivery} を実行してください。"},
	"send_expired":       {"Delivery {delivery} ({endpoint}) became too old to send: {reason}", "配信 {delivery}({endpoint})は古くなったため送信されませんでした: {reason}", "If it is still wanted: callrelay retry {call} {delivery}; else: callrelay discard {call} {delivery} --reason ...", "必要であれば callrelay retry {call} {delivery}、不要であれば callrelay discard {call} {delivery} --reason ... を実行してください。"},
	"send_asked":         {"Delivery {delivery} ({endpoint}) may have arrived, nobody knows: {reason}", "配信 {delivery}({endpoint})は届いた可能性がありますが、確認できません: {reason}", "Look in TopS.II whether it is there. If it is: callrelay discard {call} {delivery} --reason ...; if not: callrelay retry {call} {delivery}", "TopS.IIに登録されているか確認し、登録済みなら callrelay discard {call} {delivery} --reason ...、未登録なら callrelay retry {call} {delivery} を実行してください。"},
	"send_maybe_twice":   {"Delivery {delivery} ({endpoint}) was sent again after an attempt that may have arrived.", "配信 {delivery}({endpoint})は、届いた可能性のある送信の後に再送されました。", "Look in TopS.II whether it is there twice. TOPSII_UNCERTAIN=ask asks before sending again.", "TopS.IIに二重登録がないか確認してください。TOPSII_UNCERTAIN=ask にすると再送前に確認を求めます。"},
	"send_discarded":     {"Delivery {delivery} ({endpoint}) was discarded: {reason}", "配信 {delivery}({endpoint})は破棄されました: {reason}", "", ""},
	"send_unknown_state": {"Delivery {delivery} ({endpoint}) is in a state that this version does not know.", "配信 {delivery}({endpoint})はこの版では不明な状態です。", "Look at it with: callrelay call {call}", "callrelay call {call} で確認してください。"},

	"kommo_claim":      {"The call waits a moment for the manager to choose where it belongs (claim_delay).", "担当者が登録先を選ぶまで、少し待っています(claim_delay)。", "", ""},
	"kommo_window":     {"The call waits for the manager: the call-result window is open, and holds it for at most KOMMO_WINDOW_MAX.", "通話結果ウィンドウが開いているため、担当者の操作を待っています(最長 KOMMO_WINDOW_MAX)。", "", ""},
	"kommo_unreported": {"Only the call-result window was heard of, and it was not saved: without a report of the VoIP service nothing is logged.", "通話結果ウィンドウからの通知だけがあり、保存されていません。VoIPサービスからの報告がないため、何も登録されません。", "If the call took place, check that the VoIP service reports it under the same call id.", "通話があった場合は、VoIPサービスが同じ呼IDで報告しているか確認してください。"},

	// Answers.
	"answer_ok":           {"TopS.II accepted delivery {delivery} ({endpoint}).", "TopS.IIは配信 {delivery}({endpoint})を受け付けました。", "", ""},
	"answer_none":         {"TopS.II has not answered anything yet.", "TopS.IIからの応答はまだありません。", "", ""},
	"no_such_call":        {"TopS.II does not know the call (WPRDEXTC3201).", "TopS.IIにこの呼が存在しません(WPRDEXTC3201)。", "Check callId, and that the call start was delivered before; then: callrelay retry {call} {delivery}", "callId と、通話開始が先に届いているかを確認し、callrelay retry {call} {delivery} を実行してください。"},
	"no_such_staff":       {"TopS.II cannot identify the staff (WPRDEXTC3202).", "TopS.IIが担当者を特定できません(WPRDEXTC3202)。", "Check predictiveStaffId (userId of the dialer) against the staff in TopS.II; send it again with: callrelay resend {request} --set userId=... --reason ...", "predictiveStaffId(ダイヤラーの userId)をTopS.IIの担当者と照合し、callrelay resend {request} --set userId=... --reason ... で再送してください。"},
	"staff_not_logged_in": {"The staff is not logged in to TopS.II (WPRDEXTC3203).", "担当者がTopS.IIにログインしていません(WPRDEXTC3203)。", "Check predictiveStaffId and that this operator is logged in; then: callrelay retry {call} {delivery}", "predictiveStaffId と担当者のログインを確認し、callrelay retry {call} {delivery} を実行してください。"},
	"logical_error":       {"TopS.II refuses it for good ({codes}).", "TopS.IIが恒久的に拒否しました({codes})。", "Confirm that customerCRTId exists in the CRM; check callId, callTime, predictiveStaffId and targetTel. Send it again corrected with: callrelay resend {request} --set name=value --reason ...", "customerCRTId がCRMに存在するか、callId、callTime、predictiveStaffId、targetTel を確認し、callrelay resend {request} --set name=value --reason ... で修正して再送してください。"},
	"licence":             {"TopS.II has no licence for this (WTYP0020). Nothing is lost: all deliveries wait.", "TopS.IIのライセンスがありません(WTYP0020)。配信はすべて保持されています。", "Put the licence right in TopS.II; the relay goes on by itself, or at once with: callrelay release {destination}", "TopS.IIのライセンスを修正してください。自動で再開しますが、callrelay release {destination} ですぐに再開できます。"},
	"api_key":             {"TopS.II does not accept the API key ({codes}). Nothing is lost: all deliveries wait.", "TopS.IIがAPIキーを受け付けません({codes})。配信はすべて保持されています。", "Check TEST_API_KEY or PROD_API_KEY of the environment in INDEX_ENV, and that TopS.II admits this address.", "INDEX_ENV の環境の TEST_API_KEY または PROD_API_KEY と、送信元アドレスの許可を確認してください。"},
	"address":             {"What answers at the address is not TopS.II's API ({codes}). Nothing is lost: all deliveries wait.", "応答したのはTopS.IIのAPIではありません({codes})。配信はすべて保持されています。", "Check TEST_BASE_URL or PROD_BASE_URL and TOPSII_PATH_PREFIX.", "TEST_BASE_URL または PROD_BASE_URL と TOPSII_PATH_PREFIX を確認してください。"},
	"app_error":           {"TopS.II failed to process it ({codes}).", "TopS.IIで処理エラーが発生しました({codes})。", "Ask those who run TopS.II, with callId and time; then: callrelay retry {call} {delivery}", "callId と時刻を添えてTopS.IIの管理者に問い合わせ、callrelay retry {call} {delivery} を実行してください。"},
	"app_error_retrying":  {"TopS.II failed to process it ({codes}); it is tried again.", "TopS.IIで処理エラーが発生しました({codes})。再試行します。", "", ""},

	// Cloud PBX.
	"pbx_events":          {"{count} events were received, the last as request {request}.", "イベントを {count} 件受信しました(最後のリクエストは {request})。", "", ""},
	"pbx_nothing":         {"Nothing of this call was received, or it ended so long ago that it is no longer kept.", "この呼のイベントは受信していないか、保存期間を過ぎています。", "Check in the PBX that each extension has its event subscriptions, with its own URL (callrelay integrations list); an unknown URL is answered 404 and leaves no trace.", "PBX側で各内線のイベント購読とURL(callrelay integrations list)を確認してください。不明なURLには404を返し、記録は残りません。"},
	"pbx_understood":      {"Every event was understood.", "すべてのイベントを解釈しました。", "", ""},
	"pbx_not_understood":  {"{note}", "解釈できないイベントがあります: {note}", "Look at its parameters with: callrelay request {request}; then correct the event subscription in the PBX.", "callrelay request {request} で内容を確認し、PBX側のイベント設定を修正してください。"},
	"pbx_refused":         {"The request was refused ({status}): {message}", "リクエストは拒否されました({status}): {message}", "Check the event subscription in the PBX: GET, or POST with a form of at most 16 KB.", "PBX側のイベント設定を確認してください(GET、または16KBまでのフォームのPOST)。"},
	"pbx_panicked":        {"The rules could not process an event: {message}", "ルールがイベントを処理できませんでした: {message}", "Report this to whoever maintains callrelay, with request {request}.", "リクエスト {request} を添えて callrelay の保守担当に連絡してください。"},
	"pbx_odd":             {"Worth knowing: {note}", "参考情報: {note}", "", ""},
	"pbx_repeats":         {"{count} events repeat earlier ones and changed nothing.", "{count} 件のイベントは以前のものの繰り返しで、影響はありません。", "", ""},
	"pbx_decided":         {"Leg {leg}: {what} ({rule}).", "通話区間 {leg}: {what}({rule})。", "", ""},
	"pbx_left_out":        {"Leg {leg} is not registered: {what} ({rule}).", "通話区間 {leg} は登録しません: {what}({rule})。", "", ""},
	"pbx_decided_none":    {"There is nothing to decide.", "判定するものはありません。", "", ""},
	"pbx_in_progress":     {"Leg {leg} is {state} on {extension}; it is decided when it ends.", "通話区間 {leg} は {extension} で継続中です({state})。終了時に判定します。", "", ""},
	"pbx_not_yet":         {"Nothing is decided yet: the call goes on, or events of it may still come.", "まだ判定していません。通話中か、イベントがまだ届く可能性があります。", "", ""},
	"pbx_unreconciled":    {"Leg {leg} is {what} ({rule}): events were lost, so it is not registered.", "通話区間 {leg} は {what}({rule})。イベントが失われたため登録していません。", "Look the call up in the PBX and register it by hand. If it happens often, check that the extension subscribes to dial-in, dial-out, answer and hangup.", "PBXの通話履歴を確認し、手作業で登録してください。頻発する場合は、内線が dial-in、dial-out、answer、hangup を購読しているか確認してください。"},
	"pbx_no_integration":  {"{note}", "連携の設定がなくなったため判定できません: {note}", "Put the integration back (callrelay integrations import), if its calls are still wanted.", "引き続き必要な場合は連携を戻してください(callrelay integrations import)。"},
	"pbx_registered":      {"Leg {leg}: {what} ({rule}), as delivery {delivery}.", "通話区間 {leg}: {what}({rule})、配信 {delivery}。", "", ""},
	"pbx_registered_none": {"No registration was made.", "登録は作成していません。", "", ""},
	"pbx_delivered":       {"Delivery {delivery} ({endpoint}) was accepted by the CRM after {attempts} attempts.", "配信 {delivery}({endpoint})は {attempts} 回目の送信でCRMに受け付けられました。", "", ""},
	"pbx_dead":            {"Delivery {delivery} ({endpoint}) was not accepted by the CRM: {reason}", "配信 {delivery}({endpoint})はCRMに受け付けられませんでした: {reason}", "Check the webhook of {destination} (address, secret, what it answers), then: callrelay retry {call} {delivery}", "{destination} のWebhook(アドレス、シークレット、応答)を確認し、callrelay retry {call} {delivery} を実行してください。"},
	"pbx_asked":           {"Delivery {delivery} ({endpoint}) may have arrived, nobody knows: {reason}", "配信 {delivery}({endpoint})は届いた可能性がありますが、確認できません: {reason}", "Look in the CRM whether it is there. If it is: callrelay discard {call} {delivery} --reason ...; if not: callrelay retry {call} {delivery}", "CRMに登録されているか確認し、登録済みなら callrelay discard {call} {delivery} --reason ...、未登録なら callrelay retry {call} {delivery} を実行してください。"},
}
