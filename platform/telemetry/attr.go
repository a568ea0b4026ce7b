package telemetry

import "go.opentelemetry.io/otel/attribute"

// The attributes of spans, metrics and logs that the semantic conventions have no name for; where they have one (HTTP, RPC,
// errors), it is used. This is the only list. None of them may hold a secret or an unmasked phone number.
var (
	RequestID   = attribute.Key("callrelay.request_id")  // string: ours, made by ingress
	CallID      = attribute.Key("callrelay.call_id")     // string: the source's id of the call
	Source      = attribute.Key("callrelay.source")      // string: who sent the callback (ameyo, pbx, kommo)
	Rule        = attribute.Key("callrelay.rule")        // string: the rule that decided
	Flow        = attribute.Key("callrelay.flow")        // string: the flow of the rule that was taken
	Duplicate   = attribute.Key("callrelay.duplicate")   // bool
	Spooled     = attribute.Key("callrelay.spooled")     // bool: acknowledged from ingress' spool
	Destination = attribute.Key("callrelay.destination") // string: the queue, so the system behind it
	Endpoint    = attribute.Key("callrelay.endpoint")    // string: the operation there
	Delivery    = attribute.Key("callrelay.delivery")    // string: the delivery's id
	Attempt     = attribute.Key("callrelay.attempt")     // int: from 1
	Outcome     = attribute.Key("callrelay.outcome")     // string
	Uncertain   = attribute.Key("callrelay.uncertain")   // bool: the request may have left and no answer came
	Door        = attribute.Key("callrelay.door")        // string: what a token was presented to (operator, cards, pbx, kommo)
	Bucket      = attribute.Key("callrelay.bucket")      // string: where accounting counts a request
	Script      = attribute.Key("callrelay.script")      // string: what Redis was asked to do
	BatchSize   = attribute.Key("callrelay.batch_size")  // int: items in the message
)
