package ingress

import (
	"net/url"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// flatQuery fills messages whose fields are all strings, as callbacks are, from a query. The gateway's own parser matches
// each name against a regular expression, which was a tenth of ingress' time; it is still asked for every other message.
type flatQuery struct {
	runtime.DefaultQueryParser
	known sync.Map // protoreflect.FullName -> map[string]protoreflect.FieldDescriptor, nil for messages that are not flat
}

// The gateway has one parser for all its muxes, and sets it only while it makes one.
func init() { runtime.NewServeMux(runtime.SetQueryParameterParser(&flatQuery{})) }

// Parse sets the fields that the query names. Unknown names are ignored; of a repeated one the last counts.
func (f *flatQuery) Parse(msg proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	m := msg.ProtoReflect()
	fields := f.fields(m.Descriptor())
	if fields == nil {
		return f.DefaultQueryParser.Parse(msg, values, filter)
	}
	for name, list := range values {
		if field, ok := fields[name]; ok {
			m.Set(field, protoreflect.ValueOfString(list[len(list)-1]))
		}
	}
	return nil
}

func (f *flatQuery) fields(d protoreflect.MessageDescriptor) map[string]protoreflect.FieldDescriptor {
	if known, ok := f.known.Load(d.FullName()); ok {
		return known.(map[string]protoreflect.FieldDescriptor)
	}
	fields := map[string]protoreflect.FieldDescriptor{}
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		if field.Kind() != protoreflect.StringKind || field.Cardinality() == protoreflect.Repeated {
			fields = nil
			break
		}
		fields[field.JSONName()] = field
	}
	f.known.Store(d.FullName(), fields)
	return fields
}
