output "client_url" {
  description = "The URL that clients connect to. They trust the CA in `ca_certificate`."
  value       = "tls://${aws_route53_record.clients.fqdn}:4222"
}

output "ca_certificate" {
  description = "The root certificate of the CA, in PEM. Clients that can read the trust bundle's secret should trust that bundle instead, because a rotation of the CA updates the bundle."
  value       = local.ca_certificate
}

output "ca_arn" {
  description = "The private CA."
  value       = local.ca_arn
}

output "trust_secret_arn" {
  description = "The trust bundle's secret."
  value       = local.trust_secret_arn
}

output "connection_secret_arn" {
  description = "The secret of the connection document, or null. Readers need secretsmanager:GetSecretValue on the secret, and kms:Decrypt on its KMS key: secrets_key_arn, or a key of existing_connection_secret."
  value       = local.connection_secret_arn
}

output "cluster_secret_arn" {
  description = "The cluster credential's secret. Only the nodes can read a secret that the module makes."
  value       = local.cluster_secret_arn
}

output "secrets_key_arn" {
  description = "The KMS key of the secrets that the module makes, or null. Readers of these secrets need kms:Decrypt on this key."
  value       = one(aws_kms_key.secrets[*].arn)
}

output "autoscaling_group_name" {
  description = "The name of the Auto Scaling group and of the NATS cluster."
  value       = aws_autoscaling_group.node.name
}

output "node_role_name" {
  description = "The nodes' role."
  value       = aws_iam_role.node.name
}

output "node_security_group_id" {
  description = "The nodes' security group."
  value       = aws_security_group.node.id
}

output "load_balancer_arn" {
  description = "The load balancer of the clients, or null with existing_load_balancer."
  value       = one(aws_lb.clients[*].arn)
}

output "clients_security_group_id" {
  description = "The security group of the load balancer, or null with existing_load_balancer. Clients connect to this group and to the nodes' group."
  value       = one(aws_security_group.clients[*].id)
}
